"""`raydecode submit` against a real job server: the folder travels, the job runs there, the log comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

HEAD = """
import logging, sys, ray
ray.init(num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
         log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
print("ready", flush=True)
sys.stdin.read()
ray.shutdown()
"""

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""A job server of Ray 2.60 asks for a token unless it is told not to; on 127.0.0.1, for the time of a test, it is."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of one node with a dashboard; it ends when its stdin closes."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | OPEN
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # a job's `python` is the node's first
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    try:
        assert head.stdout
        assert head.stdout.readline().strip() == "ready"
        yield f"http://127.0.0.1:{port}"
    finally:
        assert head.stdin
        head.stdin.close()
        head.wait(60)
        head.stdout.close()


@pytest.mark.slow
def test_a_folder_runs_on_a_cluster(tmp_path: Path, address: str, root: Path) -> None:
    folder, out = tmp_path / "work", tmp_path / "shared" / "out"
    folder.mkdir()
    rows = [{"id": f"r{i}", "prompt": "ab(" * (i % 4 + 1)} for i in range(20)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(
        "model: toy\ninput: {path: p.jsonl, id: id}\noutput: {path: out/x}\ndecoding: {max_tokens: 8}\n"
    )
    command = [sys.executable, "-m", "raydecode.cli", "submit"]
    environment = os.environ | OPEN | {"PYTHONPATH": str(root)}
    asked = [*command, "job.yaml", f"output.path={out}", "--address", address]
    done = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 rows" in done.stderr, "the job's log is shown here"
    id = done.stdout.split(":")[0].strip()
    stored = [row["id"] for part in out.glob("part-*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(stored) == sorted(row["id"] for row in rows)

    again = [*command, "--follow", id, "--address", address]
    seen = subprocess.run(again, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert seen.returncode == 0
    assert "20 rows" in seen.stderr
