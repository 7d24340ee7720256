"""`raydecode submit`: the job on a cluster, watched from here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raydecode.cli.terminal import err, out
from raydecode.errors import UserError


def command(
    job: Annotated[Path | None, typer.Argument(help="the job file, in this folder")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="changes by dots")] = None,
    address: Annotated[
        str,
        typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, http://head:8265"),
    ] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the job's log")] = True,
    follow: Annotated[str | None, typer.Option("--follow", help="watch a submission again, by its id")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="void what the output holds of another job")] = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="start although another run seems alive")] = False,
) -> int:
    """Send this folder and JOB to a Ray cluster. The job goes on when this terminal does not."""
    from pipelines import submit as jobs

    if follow is None:
        if job is None:
            raise UserError("give a job file, or --follow ID", field="job")
        id = _start(
            job,
            list(overrides or ()),
            address,
            [f for f, on in (("--overwrite", overwrite), ("--takeover", takeover)) if on],
        )
    else:
        id = follow
    if not wait:
        out.print(f"{id}\nwatch it: raydecode submit --follow {id} --address {address}", markup=False)
        return 0
    try:
        status = jobs.follow(jobs.connect(address), id, lambda text: print(text, end="", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        err.print(
            f"\nnot watching any more; the job goes on. Again: raydecode submit --follow {id} --address {address}"
        )
        return 130
    out.print(f"{id}: {status.lower()}", markup=False)
    return 0 if status == "SUCCEEDED" else 1


def _start(job: Path, overrides: list[str], address: str, flags: list[str]) -> str:
    from pipelines import submit as jobs
    from raydecode.config import load_job

    config = load_job(job, overrides)
    jobs.check(config, job)
    id = jobs.submit(jobs.connect(address), jobs.entrypoint(job, overrides, flags), Path.cwd())
    err.print(f"submitted {id}", markup=False)
    return id
