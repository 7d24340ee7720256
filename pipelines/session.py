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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import actors
import pipelines
import raydecode

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session() -> Iterator[Any]:
    """The `ray` module, initialised."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=_code())
    else:
        _find_code_here()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _folders() -> list[Path]:
    return [Path(str(package.__file__)).parent for package in (raydecode, actors, pipelines)]


def _find_code_here() -> None:
    """Workers of a local Ray inherit this environment: they import what this process imports, a bare checkout too."""
    roots = dict.fromkeys(str(folder.parent) for folder in _folders())
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *(path for path in old if path and path not in roots)])


def _code() -> dict[str, Any]:
    """The runtime environment that carries these packages to a cluster. A submitted job has its own already."""
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        return {}
    return {"py_modules": [str(folder) for folder in _folders()]}
