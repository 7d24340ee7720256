"""A step's memory is used again by the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from raydecode.engine.torch.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
if kept is False:
    sys.exit(3)
def step():
    a = torch.ones(32, 49152)
    b = a / 2
    return float(b.sum())
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, timeout=300)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_no_page_is_asked_for_again() -> None:
    """20 steps of 12 MB are 61,000 pages where each is new; a few are Python's own."""
    assert faults("kept") < 2000
