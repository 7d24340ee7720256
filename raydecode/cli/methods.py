"""`raydecode methods`: what can be named in a job, room by room. The README's table is printed here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from raydecode.cli.terminal import out, print_json
from raydecode.engine.catalogue import OURS


def command(
    room: Annotated[
        str | None, typer.Argument(help="samplers, monitors, drafters, searches, interventions, ...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything, with the JSON Schema of the options")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table of the README")] = False,
) -> None:
    """List the registered methods: paper, lossless (the text's law stays the model's) or not, engines, options."""
    rows = listed(room)
    if as_json:
        print_json(rows)
    elif markdown:
        print(table(rows))
    else:
        _show(rows)


def listed(room: str | None = None) -> list[dict[str, Any]]:
    """Every method of a room, or of all rooms, as JSON-able rows."""
    from raydecode.engine.catalogue import catalogue

    return catalogue(room)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = "| room | method | what it does | paper | lossless | engines | options |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (
            row["room"],
            f"`{row['name']}`",
            row["summary"],
            _paper(row["paper"]),
            "yes" if row["exact"] else "no",
            engines(row),
            options(row),
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def options(row: dict[str, Any]) -> str:
    """`p, value = 1.0`: an option's name, with its default where it has one."""
    properties = row["options"].get("properties", {})
    return ", ".join(f"{name} = {spec['default']}" if "default" in spec else name for name, spec in properties.items())


def engines(row: dict[str, Any]) -> str:
    """`torch, toy, vllm*`: who hosts it; the star stands for our classes inside vLLM."""
    star = "*" if row["vllm"] in OURS else ""
    return ", ".join(name + star if name == "vllm" else name for name in row["engines"])


def _paper(paper: str) -> str:
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return paper


def _show(rows: list[dict[str, Any]]) -> None:
    room = None
    for row in rows:
        if row["room"] != room:
            room = row["room"]
            out.print(f"[bold]{room}[/bold]")
        marks = [engines(row), row["paper"]]
        marks += ["lossless" if row["exact"] else "changes the text's law"]
        marks += [] if row["pure"] else ["depends on the clock or a service"]
        out.print(f"  {row['name']}({options(row)})", markup=False, end="  ")
        out.print("; ".join(mark for mark in marks if mark), style="dim", markup=False)
        out.print(f"      {row['summary']}", markup=False)
        if row["among"]:
            out.print(
                f"      chooses among {', '.join(row['among'])} and none; what and why is in the report", markup=False
            )
    if any(row["vllm"] == OURS[0] for row in rows):
        out.print("vllm*: by raydecode's processor inside vLLM, as are all chains that vLLM's order cannot give")
    if any(row["vllm"] == OURS[1] for row in rows):
        from raydecode.engine.vllm.speculation import FIELD, METHODS

        out.print("vllm*, drafters: by raydecode's proposer inside vLLM")
        out.print(f"vLLM's own, one for all rows of a job: {FIELD} ({', '.join(METHODS)})", markup=False)
    if not rows:
        out.print("no method is registered in this room yet")
