"""A job on a cluster: this folder travels there, the cluster supervises it, this terminal only watches.

    working directory -> packed by Ray (.rayignore is honoured) -> `raydecode generate` on the cluster -> its log, here

Closing the laptop ends the watching and nothing else; `raydecode submit --follow ID` watches again. What the job
writes must outlive the cluster's temporary copy of this folder, so a relative output path is refused here.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raydecode.config import JobConfig
from raydecode.errors import JobError, UserError

EXCLUDES = (".git", ".venv", "out", "site", "*.safetensors", "*.gguf", "*.pt", ".*_cache", "__pycache__")
POLL_S = 2.0
AGENT_S = 120.0
"""A new head says "no available agent" until its own agent is up: 10 s quiet, over a minute on a busy machine."""
PATIENCE_S = 600.0
"""A connection may be gone this long (a closed laptop, a restarted proxy) before watching ends."""


def entrypoint(job: Path, overrides: Sequence[str], flags: Sequence[str] = ()) -> str:
    """The command that the cluster runs."""
    return shlex.join(["python", "-m", "raydecode.cli", "generate", str(job), *overrides, *flags])


def check(config: JobConfig, job: Path) -> None:
    """Refuse what would be lost or not found over there."""
    if "://" not in config.output.path and not os.path.isabs(config.output.path):
        raise UserError(
            "a relative path would end in the cluster's temporary copy of this folder", field="output.path",
            value=config.output.path, hint="output.path=s3://bucket/run1, or a folder that all nodes share",
        )  # fmt: skip
    if job.is_absolute() or ".." in job.parts:
        raise UserError("the job file must lie in this folder: only this folder travels", field="job", value=str(job))


def runtime_env(folder: Path) -> dict[str, Any]:
    """This folder, and our packages where they do not lie in it and come from a checkout."""
    import actors
    import pipelines
    import raydecode

    env: dict[str, Any] = {"working_dir": str(folder), "excludes": list(EXCLUDES)}
    packages = [Path(str(package.__file__)).parent for package in (raydecode, actors, pipelines)]
    inside = all(package.is_relative_to(folder.resolve()) for package in packages)
    if not inside:
        env["py_modules"] = [str(package) for package in packages]
    return env


def connect(address: str) -> Any:
    """The client of a cluster's job server (http://head:8265)."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(
            f"Ray's job client is not installed ({error})", field="--address", hint="pip install raydecode[serve]"
        ) from None
    from ray.exceptions import AuthenticationError

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else a line per package, again at each try
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            "this cluster asks for a token", field="--address", value=address,
            hint="RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... (on its head: ray get-auth-token)",
        ) from None  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"no job server answers: {str(error).splitlines()[0]}", field="--address", value=address,
            hint="the address of the dashboard: http://<head node>:8265 (the head needs ray[default])",
        ) from None  # fmt: skip


def submit(
    client: Any,
    command: str,
    folder: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Pack, upload, start; returns the submission's id. A cluster that is still starting gets AGENT_S."""
    id, env, began = f"raydecode-{uuid.uuid4().hex[:8]}", runtime_env(folder), clock()
    while True:
        try:
            return client.submit_job(entrypoint=command, submission_id=id, runtime_env=env)
        except (ConnectionError, RuntimeError, OSError) as error:
            if "No available agent" not in str(error) or clock() - began > AGENT_S:
                hint = " (is its port 52365 taken by another Ray?)" if "No available agent" in str(error) else ""
                raise JobError(f"the job was not accepted: {error}{hint}") from error
        sleep(POLL_S)


def follow(
    client: Any,
    id: str,
    write: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Write the job's log as it grows; returns its final status. Lost connections are tried again."""
    seen, lost_at = 0, None
    while True:
        try:
            status = client.get_job_status(id)
            log = client.get_job_logs(id)
        except (ConnectionError, RuntimeError, OSError) as error:
            lost_at = clock() if lost_at is None else lost_at
            if clock() - lost_at > PATIENCE_S:
                raise JobError(
                    f"{id}: no answer for {PATIENCE_S / 60:.0f} minutes ({error}); the job may well go on"
                ) from error
            sleep(POLL_S)
            continue
        lost_at = None
        if len(log) > seen:
            write(log[seen:])
            seen = len(log)
        if status.is_terminal():
            return str(status.value)
        sleep(POLL_S)
