"""`raydecode report`: write report.json and report.html of an output again, finished or not."""

from __future__ import annotations

from typing import Annotated

import typer

from raydecode.cli.terminal import count, out


def command(output: Annotated[str, typer.Argument(help="the folder named by output.path")]) -> None:
    """Write the report of OUTPUT from its rows and its log."""
    from pipelines.report import write_report
    from raydecode.corpus.storage import open_storage

    report = write_report(open_storage(output), {})
    out.print(
        f"{count(report.figures['rows'])} rows, {count(report.figures['errors'])} with an error\n{report.url}",
        markup=False,
    )
