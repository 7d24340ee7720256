"""Runs as processes: start one, find its parts in the process tree, kill or stop them, reap what is left of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raydecode.config import JobConfig
from raydecode.corpus.history import replay
from raydecode.corpus.storage import open_storage

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"actor": "ray::GenerationActor", "ledger": "ray::LedgerActor", "raylet": "raylet/raylet"}
LIMIT_S = 300


class Run:
    """One driver process and what it started."""

    def __init__(self, job: JobConfig, *flags: str) -> None:
        self.job = job
        file = Path(job.output.path).with_suffix(".job.json")
        file.write_text(json.dumps(job.to_json()))
        self._log = file.with_suffix(f".{time.monotonic_ns()}.log")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        env.pop("RAY_ADDRESS", None)
        env["PYTHONFAULTHANDLER"] = "1"
        command = [sys.executable, str(ROOT / "tests" / "pipelines" / "driver.py"), str(file), *flags]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
        self.tree: dict[int, str] = {}

    def until(self, reached: Callable[[int], bool]) -> bool:
        """Wait until the number of committed rows satisfies `reached`; False when the run ended before."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if reached(committed(self.job)):
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        raise AssertionError(f"no progress in {LIMIT_S} s: {self.output()}")

    def look(self) -> dict[int, str]:
        """pid -> command line of every process below the driver; remembered for `reap`."""
        self.tree |= descendants(self.process.pid)
        return self.tree

    def find(self, role: str) -> list[int]:
        if role == "driver":
            return [self.process.pid]
        return sorted(pid for pid, line in self.look().items() if ROLES[role] in line.split(" ")[0])

    def wait(self) -> int:
        """The exit code. Ends the run by force when it hangs."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.look()
            signal_to(self.process.pid, signal.SIGABRT)  # the fault handler writes every thread's stack
            time.sleep(5)
            self.reap()
            raise AssertionError(f"the run hangs: {self.output()}") from None

    def reap(self) -> None:
        """Kill what is left of the processes seen in the tree, and nothing else."""
        for pid, line in [(self.process.pid, ""), *self.tree.items()]:
            if pid == self.process.pid or command_line(pid) == line:
                signal_to(pid, signal.SIGKILL)
        self.process.wait(30)

    def output(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def committed(job: JobConfig) -> int:
    return replay(open_storage(job.output.path)).rows


def signal_to(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descendants(root: int) -> dict[int, str]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    out: dict[int, str] = {}
    todo = [root]
    while todo:
        at = todo.pop()
        for pid, parent in parents.items():
            if parent == at and pid not in out:
                out[pid] = command_line(pid)
                todo.append(pid)
    return out
