"""The manual and the README: generated parts are current, blocks parse or run, commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"(?:<!-- test: (?P<mark>\w+) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
BASE = "model: toy\ninput: {path: p.jsonl}\noutput: {path: out/x}\n"


def blocks(*kinds: str) -> list:
    return [
        pytest.param(found, id=f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
        for page in PAGES
        for found in FENCE.finditer(page.read_text())
        if found["kind"] in kinds
    ]


def test_generated_parts_are_current():
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error", "check.py"]
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["registered", "equal", "refused", "bounded"]


CHECK = """
import torch
import probability_floor
from raydecode import registry
from raydecode.config import parse_decoding
from raydecode.engine import toy
from raydecode.errors import UserError
from raydecode.events import TokenEvent
from raydecode.request import Ids, Request

spec = parse_decoding({"sampler": {"name": "probability_floor", "p": 0.2}, "max_tokens": 20, "seed": 3})
print("registered")

class Rows:
    def option(self, name):
        return torch.tensor([0.05, 0.3])

x = torch.tensor([[0.0, 1.0, 3.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
kept = probability_floor.ProbabilityFloor().shape(x, Rows()).isfinite()
probability = x.softmax(1)
assert kept[0].tolist() == (probability[0] >= 0.05).tolist()
assert kept[1].all(), "equals at the top all stay"
print("equal")

try:
    parse_decoding({"sampler": {"name": "probability_floor", "p": 2}})
except UserError as error:
    assert error.field == "decoding.sampler.p"
    print("refused")

engine = toy.ToyEngine(slots=4)
for i in range(50):
    engine.submit(Request(str(i), str(i), Ids((0, 1)), spec))
text = {}
while engine.busy:
    for event in engine.step():
        if isinstance(event, TokenEvent):
            before = text.setdefault(event.row.request, [0, 1])
            p = toy.logits(before).softmax(0)
            assert p[event.token] >= 0.2 or event.token == p.argmax()
            before.append(event.token)
assert len(text) == 50
print("bounded")
"""


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line, comments=True)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_jobs_parse(file):
    from raydecode.config import load_job

    load_job(file)


def test_init_writes_a_job_that_parses(tmp_path, monkeypatch):
    from raydecode.cli import run
    from raydecode.config import load_job

    assert run(["init", str(tmp_path)]) == 0
    assert load_job(tmp_path / "job.yaml").prompt.chat
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) >= 5
    assert run(["init", str(tmp_path)]) == 2, "never over existing files"
    assert run(["init", str(tmp_path), "--force"]) == 0
