"""The roof: one file per command, each importing what it runs when it runs.

    raydecode generate job.yaml decoding.sampler=greedy output.path=out/run2

Exit codes: 0 done, 1 the job ended (what is committed stays), 2 the request is wrong, 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import raydecode
from raydecode.cli import doctor, explain, generate, init, methods, models, plan, report, serve, submit, verify
from raydecode.cli.terminal import complain, err
from raydecode.errors import JobError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"raydecode {raydecode.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decoding methods as plug-ins over one engine: one specification, one seed, one text."""


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        typer.main.get_command(app).main(args=list(arguments), prog_name="raydecode")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Errors become a message and an exit code; whatever is not ours keeps its traceback."""

    @functools.wraps(command)
    def guarded(**arguments: Any) -> None:
        try:
            code = command(**arguments) or 0
        except (UserError, JobError) as error:
            complain(error)
            code = 2 if isinstance(error, UserError) else 1
        except KeyboardInterrupt:
            err.print("interrupted: what is committed stays, the same command goes on from there")
            code = 130
        raise typer.Exit(code)

    return guarded


for module in (init, generate, verify, explain, plan, report, serve, methods, models, doctor, submit):
    app.command(name=module.__name__.rsplit(".", 1)[1])(_guarded(module.command))
