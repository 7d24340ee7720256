"""`raydecode generate`: a corpus through a model. The same command again resumes, or says that it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raydecode.cli.terminal import count, err, out, span
from raydecode.errors import UserError

SHOWN = 3


def command(
    job: Annotated[Path, typer.Argument(help="the job file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes by dots: decoding.sampler=greedy")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="void what the output holds of another job")] = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="start although another run seems alive")] = False,
) -> None:
    """Generate every row of JOB that its output does not hold yet."""
    from raydecode.config import load_job

    config = load_job(job, overrides or ())
    try:
        _generate(config, overwrite, takeover)
    except UserError as error:
        raise config.locate(error) from error


def _generate(config: Any, overwrite: bool, takeover: bool) -> None:
    from pipelines.generate import run
    from pipelines.report import ensure_report
    from raydecode.assemble import notes
    from raydecode.cli.progress import Display

    for note in notes(config):
        err.print(note, style="dim")
    with Display() as display:
        summary = run(config, overwrite=overwrite, takeover=takeover, progress=display.show)
    report = ensure_report(summary, config)
    _tell(summary, report)


def _tell(summary: Any, report: Any) -> None:
    """Where things lie, how fast it was, and the first texts."""
    figures = report.figures
    if summary.already_finished:
        out.print("[bold]finished already[/bold]: nothing to do. Another output.path, or --overwrite, runs it anew.")
    new = summary.rows - summary.rows_before
    rate = figures["throughput"]["tokens_per_s"]
    errors = f", {count(summary.errors)} with an error" if summary.errors else ""
    before = f" ({count(summary.rows_before)} of them before)" if 0 < summary.rows_before < summary.rows else ""
    out.print(f"[bold]{count(summary.rows)} rows[/bold]{before}, {count(summary.tokens)} tokens{errors}")
    if not summary.already_finished and new:
        speed = f", {count(rate)} tokens/s" if rate else ""
        out.print(f"{span(summary.seconds)} with start-up{speed}")
    engine = report.engine
    if engine.get("why"):
        promise = f", {engine['promise']}" if engine.get("promise") else ""
        out.print(f"{engine['name']} engine, {engine['dtype']}{promise}: {engine['why']}", style="dim", markup=False)
    for row in figures["first_rows"][:SHOWN]:
        _one(row)
    out.print(f"\nrows    {summary.output}/*.parquet", markup=False)
    out.print(f"report  {report.url}", markup=False)


def _one(row: dict[str, Any]) -> None:
    """`id  prompt -> text`, each on one line."""
    asked = next(
        (row[name] for name in ("prompt", "question", "instruction", "input_prompt") if isinstance(row.get(name), str)),
        "",
    )
    said = row.get("text") or (f"error: {row['error'].get('message')}" if row.get("error") else "")
    out.print(f"\n[bold]{_line(str(row.get('id')), 40)}[/bold]  ", end="")
    out.print(_line(str(asked), 100), style="dim", markup=False)
    out.print("  " + _line(str(said), 200), markup=False)


def _line(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
