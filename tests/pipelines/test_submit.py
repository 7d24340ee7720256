"""Submission: what is refused here, what travels, and watching through lost connections."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import submit
from raydecode.config import parse_job
from raydecode.errors import JobError, UserError

JOB = "model: toy\ninput: {path: p.jsonl}\noutput: {path: s3://bucket/run1}\n"


def status(name: str) -> SimpleNamespace:
    return SimpleNamespace(value=name, is_terminal=lambda: name not in ("PENDING", "RUNNING"))


class Recorded:
    """Plays back what a job server said: (status, whole log), or an exception."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def get_job_status(self, id):
        answer = self.answers[0] if len(self.answers) > 1 else self.answers[-1]
        if isinstance(answer, Exception):
            self.answers.pop(0) if len(self.answers) > 1 else None
            raise answer
        return status(answer[0])

    def get_job_logs(self, id):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[-1]
        return answer[1]


def test_the_log_is_written_once_although_the_connection_is_lost():
    lost = ConnectionError("gone")
    client = Recorded(
        ("PENDING", ""), ("RUNNING", "a\n"), lost, lost, ("RUNNING", "a\nb\n"), ("SUCCEEDED", "a\nb\nc\n")
    )
    heard: list[str] = []
    assert submit.follow(client, "id", heard.append, sleep=lambda s: None) == "SUCCEEDED"
    assert "".join(heard) == "a\nb\nc\n"


def test_watching_ends_after_long_silence_and_says_that_the_job_may_go_on():
    time = iter(range(0, 10_000, 300))
    with pytest.raises(JobError, match="may well go on"):
        submit.follow(Recorded(ConnectionError("x")), "id", print, clock=lambda: next(time), sleep=lambda s: None)


def test_failed_is_failed():
    assert submit.follow(Recorded(("FAILED", "")), "id", print, sleep=lambda s: None) == "FAILED"


def test_a_cluster_that_still_starts_is_waited_for(tmp_path):
    answers = [RuntimeError("No available agent to submit job, please try again later.")] * 3 + [None]

    def submit_job(entrypoint, submission_id, runtime_env):
        answer = answers.pop(0)
        if answer:
            raise answer
        return submission_id

    client = SimpleNamespace(submit_job=submit_job)
    assert submit.submit(client, "c", tmp_path, sleep=lambda s: None).startswith("raydecode-")
    answers[:] = [RuntimeError("500: disk full")]
    with pytest.raises(JobError, match="disk full"):
        submit.submit(client, "c", tmp_path, sleep=lambda s: None)


def test_the_command_survives_a_shell():
    command = submit.entrypoint(Path("job.yaml"), ["prompt.template={{ q }} it's", "input.path=[a,b]"], ["--overwrite"])
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "raydecode.cli", "generate"]
    assert words[4:] == ["job.yaml", "prompt.template={{ q }} it's", "input.path=[a,b]", "--overwrite"]


@pytest.mark.parametrize(
    ("override", "job", "field"),
    [("output.path=out/x", "job.yaml", "output.path"), ("", "/tmp/job.yaml", "job"), ("", "../job.yaml", "job")],
)
def test_what_would_be_lost_is_refused(override, job, field):
    with pytest.raises(UserError) as caught:
        submit.check(parse_job(JOB, [override] if override else []), Path(job))
    assert caught.value.field == field
    submit.check(parse_job(JOB), Path("jobs/job.yaml"))


def test_the_packages_travel_from_a_checkout_elsewhere(tmp_path, root):
    outside = submit.runtime_env(tmp_path)
    assert {Path(one).name for one in outside["py_modules"]} == {"raydecode", "actors", "pipelines"}
    assert "py_modules" not in submit.runtime_env(root)
    assert ".venv" in outside["excludes"]


def test_no_server_is_a_users_error():
    with pytest.raises(UserError, match="no job server answers"):
        submit.connect("http://127.0.0.1:9")
