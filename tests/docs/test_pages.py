"""The manual and the README: generated parts are current, blocks parse or run, commands and links exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

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
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + "run: python docs/generate.py"


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_a_job_or_a_server_or_sections_of_a_job(block):
    from raydecode.config import parse_job, parse_serve

    data = yaml.safe_load(block["body"])
    if {"models", "applications"} & set(data):
        parse_serve(block["body"])
        return
    parse_job(block["body"] if "model" in data else yaml.safe_dump(yaml.safe_load(BASE) | data))


@pytest.mark.parametrize("block", blocks("json"))
def test_json_lines_are_json_and_their_decoding_is_valid(block):
    from raydecode.config import parse_decoding

    for line in block["body"].splitlines():
        parse_decoding(json.loads(line).get("decoding", {}))


@pytest.mark.parametrize("block", blocks("console"))
def test_commands_exist_with_these_options(block):
    from raydecode.cli import app

    group = typer.main.get_command(app)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in block["body"].splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets
        elif words[:1] == ["raydecode"]:
            group.commands[words[1]].make_context(words[1], words[2:])
        else:
            assert words[:1] in (["cd"], ["source"]), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            assert re.match(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}$", target), f"{target}: only papers are linked to"
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}, target


def test_the_architecture_page_says_what_exists():
    """Each room of the table is there if it says so, and absent if it is called planned."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|[^|]*\| (exists|planned)", text, re.MULTILINE)
    states = {}
    for cell, state in rows:
        names = re.findall(r"`([^`]+)`", cell)
        inside = names[0].startswith("raydecode/")
        states |= {name if "raydecode" in name or not inside else f"raydecode/{name}": state for name in names}
    assert len(states) > 25
    wrong = {name for name, state in states.items() if (ROOT / name).exists() != (state == "exists")}
    assert not wrong
    rooms = {f"raydecode/{one.name}/" for one in (ROOT / "raydecode").iterdir() if (one / "__init__.py").exists()}
    assert rooms <= states.keys(), "a room without a line"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {page.name for page in PAGES if page.parent.name == "docs"}
    assert set(re.findall(r": ([a-z-]+\.md)$", text, re.MULTILINE)) == pages


def test_the_readmes_method_works(tmp_path):
    """Run it, put it into a chain, and compare with the definition."""
    (block,) = (m for m in FENCE.finditer((ROOT / "README.md").read_text()) if m["mark"] == "method")
    (tmp_path / "probability_floor.py").write_text(block["body"])
    (tmp_path / "check.py").write_text(CHECK)
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "check.py"]
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, timeout=250, check=False)
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


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_jobs_and_servers_parse(file):
    from raydecode.config import load_job, load_serve

    (load_serve if "serve" in file.name else load_job)(file)


def test_init_writes_a_job_that_parses(tmp_path, monkeypatch):
    from raydecode.cli import run
    from raydecode.config import load_job

    assert run(["init", str(tmp_path)]) == 0
    assert load_job(tmp_path / "job.yaml").prompt.chat
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) >= 5
    assert run(["init", str(tmp_path)]) == 2, "never over existing files"
    assert run(["init", str(tmp_path), "--force"]) == 0


def test_the_manual_builds(tmp_path):
    """Strict: a link into nothing or a page outside the navigation is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "<table>" in (tmp_path / "configuration" / "index.html").read_text()
