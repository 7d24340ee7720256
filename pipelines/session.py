"""A Ray to work on: the one that is there, or a quiet local one for the time of a job.

| situation | what happens |
|---|---|
| Ray is initialised in this process | used, left running |
| RAY_ADDRESS is set (a cluster, or a submitted job) | connected; this code travels along, weights never do |
| else | a local Ray, stopped at the end; it dies with this process |

Quiet and private as measured on Ray 2.60: no usage statistics, no dashboard, no progress bars, no worker output here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import actors
import pipelines
import raydecode
from pipelines.lone_node import lean_start
from raydecode.config import ActorsConfig
from raydecode.errors import JobError

SMALL_MACHINE_CPUS = 4

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(*packages: ModuleType) -> Iterator[Any]:
    """The `ray` module, initialised. packages: further ones that a cluster's workers import."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=_code(packages))
    else:
        start_local(ray)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def start_local(ray: Any, **options: Any) -> None:
    """A quiet local Ray. It gives its own processes a fixed 30 s to come up, which 12 busy processes on 2 cores were
    seen to exceed: try three times."""
    _find_code_here()
    for last in (False, False, True):
        before = _children()
        try:
            with lean_start(ray):
                ray.init(
                    address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                    **options,
                )  # fmt: skip
            return
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise JobError(f"Ray does not start on this machine: {error}") from error
            ray.shutdown()
            for pid in _children() - before:  # the failed start forgets its own processes
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _children() -> set[int]:
    """Processes that this one started (Linux; elsewhere none are seen)."""
    try:
        lists = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return set()
    return {int(pid) for text in lists for pid in text.split()}


def _folders() -> list[Path]:
    return [Path(str(package.__file__)).parent for package in (raydecode, actors, pipelines)]


def _find_code_here() -> None:
    """Workers of a local Ray inherit this environment: they import what this process imports, a bare checkout too."""
    roots = dict.fromkeys(str(folder.parent) for folder in _folders())
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *(path for path in old if path and path not in roots)])


def _code(packages: Sequence[ModuleType] = ()) -> dict[str, Any]:
    """The runtime environment that carries these packages to a cluster. A submitted job has its own already."""
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        return {}
    further = [Path(str(package.__file__)).parent for package in packages]
    return {"py_modules": [str(folder) for folder in [*_folders(), *further]]}


def cpus_of(ray: Any) -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def free(ray: Any) -> dict[str, float]:
    """CPUs and GPUs that nobody has taken."""
    return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}


def resources(ray: Any, actors: ActorsConfig, *, cpu_only: bool) -> tuple[dict[str, float], int]:
    """What Ray sets aside for each engine, and how many threads it should use.

    An actor that takes a whole CPU on a small machine leaves the readers none, and the job hangs without a word; so
    there it takes none and shares.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    per_node = max(1, -(-actors.max // max(1, len(nodes))))
    gpus = actors.num_gpus
    if gpus is None:
        gpus = 1.0 if not cpu_only and any(node.get("GPU") for node in nodes) else 0.0
    own = actors.num_cpus
    if own is None:
        own = 0.0 if gpus or cpus <= SMALL_MACHINE_CPUS else float(max(1, (cpus - 1) // per_node))
    return {"num_cpus": own, "num_gpus": gpus}, int(own) or max(1, cpus // per_node)
