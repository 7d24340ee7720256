"""The README's commands, run: the demo on the toy model, then verify, explain, and the finished job once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def raydecode(root: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "raydecode.cli", *arguments],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_the_commands_of_the_readme(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = ["configs/quickstart.yaml", "model=toy", f"output.path={out}", "decoding.sampler=greedy"]
    first = raydecode(root, "generate", *job)
    assert "172 rows" in first
    report = json.loads((out / "report.json").read_text())
    assert report["figures"]["rows"] == 172
    assert report["figures"]["errors"] == 0
    assert (out / "report.html").stat().st_size > 10_000
    raydecode(root, "verify", str(out))
    explained = json.loads(raydecode(root, "explain", str(out), "--id", "question-01", "--json"))
    assert explained["equal"] is True
    again = raydecode(root, "generate", *job)
    assert "finished" in again
