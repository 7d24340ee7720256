"""`raydecode submit` against a real job server: the folder travels, the job runs there, the log comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""A job server of Ray 2.60 asks for a token unless it is told not to; on 127.0.0.1, for the time of a test, it is."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of one node with a job server, started as an administrator would; it ends with its process."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | OPEN
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # a job's `python` is the node's first
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={free_port()}",
        "--num-cpus=4", "--include-dashboard=true", f"--dashboard-port={port}", "--disable-usage-stats",
        f"--object-store-memory={200 * 2**20}", f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def _wait_for(port: int, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.skip("no job server after two minutes: the machine is too busy")


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
