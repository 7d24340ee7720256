"""The report of an output folder: made again from what lies there, whatever a crash left of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.report import ensure_report, facts_of, versions, write_report
from raydecode.config import JobConfig
from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from raydecode.errors import UserError
from tests.actors.local import LocalJob, job_of, prompts


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    job = job_of(tmp_path_factory.mktemp("report"), prompts(20), engine={"dtype": "float32"})
    LocalJob(job).run(1)
    return job


def summary(job: JobConfig, *, finished: bool) -> SimpleNamespace:
    url = open_storage(job.output.path).url
    return SimpleNamespace(
        output=url,
        already_finished=finished,
        workers={"w0": {"engine": "toy", "promise": "bitwise", "memory_bytes": 7}, "w1": {}},
    )


@pytest.mark.parametrize("left", [None, b"", b'{"figures"', b"{}"])
def test_a_torn_report_is_written_again(left, job):
    file = Path(job.output.path, "report.json")
    file.unlink(missing_ok=True)
    if left is not None:
        file.write_bytes(left)
        Path(job.output.path, "report.html").write_text("")
    written = ensure_report(summary(job, finished=True), job)
    assert written.figures["rows"] == 20
    assert written.engine == {"name": "toy", "dtype": "float32", "why": written.engine["why"], "promise": "bitwise"}
    assert json.loads(file.read_bytes())["facts"]["engine"]["promise"] == "bitwise"


def test_a_finished_job_keeps_its_report(job):
    ensure_report(summary(job, finished=False), job)
    before = Path(job.output.path, "report.html").stat().st_mtime_ns
    kept = ensure_report(summary(job, finished=True), job)
    assert (kept.figures["rows"], kept.engine["name"]) == (20, "toy")
    assert Path(job.output.path, "report.html").stat().st_mtime_ns == before


def test_promises_are_told_from_the_log_alone(tmp_path):
    """A killed run leaves no summary; the output was then finished under another promise."""
    mixed = job_of(tmp_path, prompts(6))
    local = LocalJob(mixed)
    assert local.ledger.introduce({"engine": "toy", "promise": "bitwise"}) is None
    told = local.ledger.introduce({"engine": "toy", "promise": "near-ties only", "noise": "0.5"})
    local.run(1)
    write_report(open_storage(mixed.output.path), {})
    facts = json.loads(Path(mixed.output.path, "report.json").read_bytes())["facts"]
    assert facts["promises"] == told
    assert (facts["engine"]["name"], facts["engine"]["promise"]) == ("toy", "near-ties only"), "the weakest"
    page = Path(mixed.output.path, "report.html").read_text()
    assert "promise: near-ties only" in page
    assert "bitwise (toy)" in page
    assert [one.what for one in verify(open_storage(mixed.output.path)).findings] == [told]


def test_the_weakest_promise_of_the_workers_is_the_jobs(job):
    told = summary(job, finished=False)
    told.workers["w2"] = {"engine": "toy", "promise": "near-ties only", "noise": 0.25, "detail": "another processor"}
    engine = facts_of(told, job)["engine"]
    assert (engine["promise"], engine["noise"], engine["detail"]) == ("near-ties only", 0.25, "another processor")


def test_what_only_the_run_knew_is_carried_over(job):
    storage = open_storage(job.output.path)
    write_report(storage, {"job": job.to_json(), "workers": [{"worker": "w0", "started_at": 1.0, "ended_at": 3.0}]})
    write_report(storage, {})
    facts = json.loads(storage.read("report.json"))["facts"]
    assert facts["workers"][0]["ended_at"] == 3.0
    assert facts["job"]["output"]["path"] == job.output.path
    assert facts["attempts"] == 1
    assert facts["versions"] == versions()


def test_a_plan_of_another_job_is_not_compared(job):
    storage = open_storage(job.output.path)
    other = job.identity() | {"model": {"source": "other"}}
    plan = {"seconds": 1.0, "seconds_low": 0.5, "seconds_high": 2.0, "output_tokens": 3.0, "memory_bytes": 8}
    storage.remove("report.json")
    storage.write("_plan.json", json.dumps({"plan": plan, "job": other}).encode())
    assert write_report(storage, {}).figures["plan"] == []
    storage.write("_plan.json", json.dumps({"plan": plan, "job": job.identity()}).encode())
    lines = write_report(storage, facts_of(summary(job, finished=False), job)).figures["plan"]
    assert [(one["plan"], one["fact"]) for one in lines if one["quantity"] == "memory_bytes"] == [(8, 7)]
    assert lines == write_report(storage, {}).figures["plan"], "what the run knew is kept"


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(UserError, match="no raydecode output here"):
        write_report(open_storage(str(tmp_path)), {})
