"""verify, report, explain, plan on a real output of the toy engine, made without a cluster."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydecode.cli import run
from raydecode.config import JobConfig
from tests.actors.local import LocalJob, prompts, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SAMPLER = [{"name": "temperature", "value": 0.8}]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    """40 rows: some with their own decoding, one that cannot be decoded, two samples each."""
    folder = tmp_path_factory.mktemp("output")
    rows = [{**row, "decoding": None} for row in prompts(40)]
    rows[3]["decoding"] = '{"sampler": "greedy", "max_tokens": 5}'
    rows[5]["decoding"] = '{"sampler": "gredy"}'
    rows[7]["sample"] = "an input column whose name the output needs"
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = JobConfig.model_validate({
        "model": "toy",
        "engine": {"name": "toy", "dtype": "float32", "slots": 4},
        "input": {"path": str(folder / "in.jsonl"), "id": "name"},
        "decoding": {"max_tokens": 12, "seed": 3, "n": 2, "sampler": SAMPLER},
        "output": {"path": str(folder / "out")},
        "price": {"per_hour": 2.0, "currency": "EUR"},
    })  # fmt: skip
    assert set(LocalJob(job).run(2)) == {"finished"}
    return job


@pytest.fixture
def out(job) -> str:
    from pipelines.report import write_report
    from raydecode.corpus.storage import open_storage

    write_report(open_storage(job.output.path), {"job": job.to_json()})
    return job.output.path


def test_verify(out, capsys):
    assert run(["verify", out]) == 0
    assert "as the log says" in capsys.readouterr().out
    assert run(["verify", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 40


def test_a_finished_job_is_answered_without_ray(out, job, tmp_path, root):
    (tmp_path / "job.yaml").write_text(json.dumps(job.to_json()))
    code = "import sys; from raydecode.cli import run; run(['generate', 'job.yaml']); print('ray' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "finished already" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_a_changed_job_over_a_finished_output_is_refused(out, job, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(json.dumps(job.to_json()))
    assert run(["generate", str(tmp_path / "job.yaml"), "decoding.seed=99"]) == 2
    assert "decoding.seed: 3 -> 99" in capsys.readouterr().err


def test_verify_finds_damage(out, capsys):
    part = next(Path(out).glob("part-*.parquet"))
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:-1] + b"x")
        assert run(["verify", out]) == 1
        assert "bytes differ" in capsys.readouterr().out
    finally:
        part.write_bytes(whole)


def test_verify_compares_the_configuration(out, job, tmp_path, capsys):
    """The log's job against the report's and against a job file; the twins with another seed are found."""
    (tmp_path / "job.yaml").write_text(json.dumps(job.to_json()))
    assert run(["verify", out, "--job", str(tmp_path / "job.yaml")]) == 0
    auto = job.to_json() | {"engine": "auto"}  # what was decided for it stands in the log
    (tmp_path / "auto.yaml").write_text(json.dumps(auto))
    assert run(["verify", out, "--job", str(tmp_path / "auto.yaml")]) == 0
    other = job.to_json()
    other["decoding"]["seed"] = 4
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    assert run(["verify", out, "--job", str(tmp_path / "other.yaml")]) == 1
    assert "decoding.seed: 3 -> 4" in capsys.readouterr().out
    report = json.loads(Path(out, "report.json").read_text())
    report["facts"]["job"]["decoding"]["seed"] = 5
    Path(out, "report.json").write_text(json.dumps(report))
    assert run(["verify", out]) == 1
    assert "report.json" in capsys.readouterr().out


def test_report_counts_what_is_there(out, job, capsys):
    assert run(["report", out]) == 0
    report = json.loads(Path(out, "report.json").read_text())
    stored = rows_of(job)
    figures = report["figures"]
    assert figures["rows"] == 40
    assert figures["samples"] == len(stored)
    assert figures["errors"] == sum(row["error"] is not None for row in stored) > 0
    assert figures["output_tokens"] == sum(row["output_tokens"] or 0 for row in stored)
    assert report["facts"]["job"]["model"]["source"] == "toy", "carried over from the earlier report"
    assert figures["cost"]["currency"] == "EUR"
    assert "<svg" in Path(out, "report.html").read_text()


@pytest.mark.parametrize(("id", "sample"), [("r0", 0), ("r0", 1), ("r3", 0), ("r7", 1), ("r39", 0)])
def test_explain_is_equal(id, sample, out, job, capsys):
    assert run(["explain", out, "--id", id, "--sample", str(sample), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = next(row for row in rows_of(job) if row["id"] == id and row["sample"] == sample)
    assert found["text"] == stored["text"]
    assert len(found["steps"]) == stored["output_tokens"]
    assert all(len(step["alternatives"]) == 5 for step in found["steps"])
    assert found["steps"][0]["logp"] <= 0
    forwards = [step["forward"] for step in found["steps"]]
    assert forwards[0] == 1
    assert [b - a for a, b in itertools.pairwise(forwards)] == [int(not s["drafted_by"]) for s in found["steps"][:-1]]
    drafted = [token["t"] for token in found["trace"]["tokens"] if token["drafted"]]
    assert drafted == [step["t"] for step in found["steps"] if step["drafted_by"]]
    assert [token["id"] for token in found["trace"]["tokens"]] == [step["token"] for step in found["steps"]]
    assert found["decoding"]["seed"] == found["seed"]
    assert sum(one["tokens"] for one in found["drafting"].values()) == len(found["steps"])
    assert "a call of one row costs" in found["drafting_why"]


def test_explain_shows_each_step(out, capsys):
    assert run(["explain", out, "--id", "r0"]) == 0
    text = capsys.readouterr().out
    assert "sampled" in text
    assert "tokens in" in text
    assert "a call of one row costs" in text
    assert "equal to the stored text" in text


def test_explain_without_a_report_goes_by_the_log(out, capsys):
    Path(out, "report.json").unlink()
    assert run(["explain", out, "--id", "r0"]) == 0


def test_explain_sees_another_text(out, job, capsys):
    """The twin: a report that claims another seed must give another text, and exit code 1."""
    report = json.loads(Path(out, "report.json").read_text())
    report["facts"]["job"]["decoding"]["seed"] = 4
    Path(out, "report.json").write_text(json.dumps(report))
    codes = {run(["explain", out, "--id", f"r{i}"]) for i in (0, 1, 2, 4)}
    assert 1 in codes
    assert "differs from the stored text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--id", "r99"], "nearest: r9"),
        (["--id", "r0", "--sample", "7"], "samples 0 to 1"),
        (["--id", "r5"], "this row has no text"),
    ],
)
def test_explain_says_what_is_wrong(arguments, says, out, capsys):
    assert run(["explain", out, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_plan_is_kept_and_compared(tmp_path, job, capsys):
    whole = job.to_json() | {"output": {"path": str(tmp_path / "out")}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(whole))
    assert run(["plan", str(file), "--seconds", "20"]) == 0
    text = capsys.readouterr().out
    assert "EUR" in text
    assert "decoding: InvalidSpec" in text
    assert "drafting  a call of one row costs" in text
    assert run(["plan", str(file), "--seconds", "20", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == pytest.approx(40, rel=0.2)
    assert plan["failing_rows"] == pytest.approx(plan["rows"] / 40, rel=0.3)

    again = JobConfig.model_validate(whole)
    LocalJob(again).run(1)
    from pipelines.report import write_report
    from raydecode.corpus.storage import open_storage

    lines = write_report(open_storage(again.output.path), {"job": again.to_json()}).figures["plan"]
    assert {"seconds", "output_tokens", "cost"} <= {line["quantity"] for line in lines}
    tokens = next(line for line in lines if line["quantity"] == "output_tokens")
    assert tokens["fact"] == pytest.approx(tokens["plan"], rel=0.3), "the sample was the whole corpus"


def test_plan_of_rows_that_all_fail(tmp_path, job, capsys):
    bad = job.to_json() | {"output": {"path": str(tmp_path / "out")}, "prompt": {"template": "{{ 1 / 0 }}"}}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(bad))
    assert run(["plan", str(file)]) == 2
    assert "sampled rows fail: template" in capsys.readouterr().err
