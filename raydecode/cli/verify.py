"""`raydecode verify`: is an output what its log says? Everything is read again, nothing is trusted."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from raydecode.cli.terminal import count, out, print_json


def command(
    output: Annotated[str, typer.Argument(help="the folder named by output.path")],
    inputs: Annotated[bool, typer.Option("--inputs/--no-inputs", help="compare the input files too")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="for pipes")] = False,
) -> int:
    """Check hashes, ids, coverage and inputs of OUTPUT. Exit code 1 when something is wrong."""
    from raydecode.corpus.storage import open_storage
    from raydecode.corpus.verify import verify

    found = verify(open_storage(output), inputs=inputs)
    if as_json:
        print_json(dataclasses.asdict(found) | {"ok": found.ok})
        return 0 if found.ok else 1
    for one in found.findings:
        style = "red" if one.severity == "error" else "yellow"
        out.print(f"[{style}]{one.severity}[/{style}]  ", end="")
        out.print(f"{one.where}: {one.what}", markup=False)
    state = "finished" if found.finished else f"unfinished, {count(found.missing)} positions missing"
    counts = f"{count(found.rows)} rows, {count(found.samples)} samples, {count(found.errors)} errors"
    out.print(f"{counts} in {found.parts} parts; {state}")
    out.print("[green]all of it is as the log says[/green]" if found.ok else "[red]the output is damaged[/red]")
    return 0 if found.ok else 1
