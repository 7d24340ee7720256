"""`raydecode submit` on a cluster of several nodes: engines are where the GPUs are, the watcher may die, the job may be
stopped, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from raydecode.corpus.history import replay
from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from tests.pipelines.test_submit_cluster import OPEN

ROWS, LIMIT_S = 160, 240
STOP = "import sys; from ray.job_submission import JobSubmissionClient as C; C(sys.argv[1]).stop_job(sys.argv[2])"


class Nodes(NamedTuple):
    server: str
    seen: Path

    def engines(self) -> dict[str, list[str]]:
        """Node name -> engines that were seen there."""
        return json.loads(self.seen.read_text()) if self.seen.exists() else {}


@pytest.fixture
def nodes(tmp_path: Path, root: Path) -> Iterator[Nodes]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | OPEN
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # a job's `python` is the node's first
    seen = tmp_path / "seen.json"
    command = [sys.executable, str(root / "tests" / "pipelines" / "several_nodes.py"), str(seen)]
    with (tmp_path / "cluster.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert line, (tmp_path / "cluster.log").read_text()[-3000:]
        yield Nodes(json.loads(line)["server"], seen)
    finally:
        process.communicate("", timeout=60)


class Client:
    """`raydecode submit ...` as a process of its own, in the folder of the job."""

    def __init__(self, folder: Path, root: Path, *arguments: str) -> None:
        self._log = folder.parent / f"client-{time.monotonic_ns()}.log"  # what lies in the folder travels with the job
        env = os.environ | OPEN | {"PYTHONPATH": str(root)}
        command = [sys.executable, "-m", "raydecode.cli", "submit", *arguments]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)

    def heard(self) -> str:
        return self._log.read_text()

    def until(self, what) -> None:
        end = time.monotonic() + LIMIT_S
        while not what():
            assert self.process.poll() in (None, -9), self.heard()[-3000:]
            assert time.monotonic() < end, self.heard()[-3000:]
            time.sleep(0.2)

    def wait(self) -> int:
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_elsewhere_a_dead_watcher_a_stopped_job_and_the_same_command(
    tmp_path: Path, nodes: Nodes, root: Path
) -> None:
    folder, out = tmp_path / "work", tmp_path / "shared" / "out"
    folder.mkdir()
    rows = [{"id": f"r{i}", "prompt": "ab(" * (i % 4 + 1)} for i in range(ROWS)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(
        "model: toy\nengine: {name: toy, slots: 2, options: {step_s: 0.05}}\ninput: {path: p.jsonl, id: id}\n"
        "output: {path: out/x, flush_s: 0.3}\ndecoding: {max_tokens: 12, ignore_eos: true}\n"
        "actors: {min: 2, max: 2, num_gpus: 1}\n"
    )
    asked = ["job.yaml", f"output.path={out}", "--address", nodes.server]

    def done() -> int:
        return replay(open_storage(str(out))).rows

    first = Client(folder, root, *asked)
    first.until(lambda: done() >= 10 and "rows" in first.heard())
    first.process.kill()
    id = first.heard().split("submitted ", 1)[1].split()[0]
    at = done()
    first.until(lambda: done() >= min(at + 10, ROWS))
    assert nodes.engines().keys() == {"a", "b"}, "one engine on each node that has a GPU, none on the head"

    subprocess.run([sys.executable, "-c", STOP, nodes.server, id], env=os.environ | OPEN, timeout=60, check=True)
    again = Client(folder, root, "--follow", id, "--address", nodes.server)
    assert again.wait() == 1, again.heard()
    assert f"{id}: stopped" in again.heard()
    before = done()
    assert 10 <= before < ROWS, "stopped in the middle"

    (folder / "notes.txt").write_text("so the folder travels under another path")
    second = Client(folder, root, *asked)
    assert second.wait() == 0, second.heard()
    assert f"{ROWS} rows ({before} of them before)" in second.heard(), "the log came back, and the job went on"
    assert nodes.engines().keys() == {"a", "b"}
    assert sum(map(len, nodes.engines().values())) >= 4, "the second run had engines of its own"
    stored = [row["id"] for part in out.glob("part-*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(stored) == sorted(row["id"] for row in rows)
    assert verify(open_storage(str(out)), inputs=False).ok
