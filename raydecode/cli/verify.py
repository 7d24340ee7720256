"""`raydecode verify`: is an output what its log says? Everything is read again, nothing is trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from raydecode.cli.terminal import count, out, print_json

if TYPE_CHECKING:
    from raydecode.corpus.storage import Storage
    from raydecode.corpus.verify import Finding


def command(
    output: Annotated[str, typer.Argument(help="the folder named by output.path")],
    inputs: Annotated[bool, typer.Option("--inputs/--no-inputs", help="compare the input files too")] = True,
    job: Annotated[str | None, typer.Option("--job", help="a job file that should have made this output")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for pipes")] = False,
) -> int:
    """Check hashes, ids, coverage, inputs and configuration of OUTPUT. Exit code 1 when something is wrong."""
    from raydecode.corpus.storage import open_storage
    from raydecode.corpus.verify import verify

    storage = open_storage(output)
    found = verify(storage, inputs=inputs)
    found.findings += _configuration(storage, job)
    if as_json:
        print_json(dataclasses.asdict(found) | {"ok": found.ok})
        return 0 if found.ok else 1
    for one in found.findings:
        style = "red" if one.severity == "error" else "yellow"
        out.print(f"[{style}]{one.severity}[/{style}]  ", end="")
        out.print(f"{one.where}: {one.what}", markup=False)
    state = "finished" if found.finished else f"unfinished, {count(found.missing)} positions missing"
    counts = f"{count(found.rows)} rows, {count(found.samples)} samples, {count(found.errors)} errors"
    out.print(f"{counts} in {found.parts} part{'s' if found.parts != 1 else ''}; {state}")
    out.print("[green]all of it is as the log says[/green]" if found.ok else "[red]the output is damaged[/red]")
    return 0 if found.ok else 1


def _configuration(storage: Storage, job: str | None) -> list[Finding]:
    """Is the job in the log the one that the report describes, and the one in the file `job`?"""
    from raydecode.config import JobConfig, load_job
    from raydecode.corpus.history import refuse_difference, replay
    from raydecode.corpus.verify import Finding
    from raydecode.errors import UserError

    logged = replay(storage).job or {}
    others: dict[str, JobConfig] = {}
    with contextlib.suppress(FileNotFoundError):  # an unfinished job has no report
        others["report.json"] = JobConfig.model_validate(json.loads(storage.read("report.json"))["facts"]["job"])
    if job:
        others[job] = load_job(job, [])
    out = []
    for where, other in others.items():
        auto = [key for key in ("name", "dtype") if getattr(other.engine, key) == "auto"]
        decided = other.engine.model_copy(update={key: logged["engine"][key] for key in auto})
        try:
            identity = other.model_copy(update={"engine": decided}).identity()
            refuse_difference(storage.url, logged, json.loads(json.dumps(identity)))
        except UserError as error:
            severity = "error" if error.field == "output.path" else "note"  # a prompt file that is elsewhere now
            out.append(Finding(severity, error.message.replace("the output holds rows of", "it describes"), where))
    return out
