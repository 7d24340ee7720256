"""The ledger's skin: it leaves when fenced or orphaned, never blocks commits by reading, and tells kills once."""

import os
import socket
import threading
import time

import pytest

from raydecode.corpus.history import replay
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.messages import Lease, Limits, Stop, Wait
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import schema_to_text
from raydecode.corpus.storage import open_storage
from raydecode.errors import JobError, UserError
from tests.actors.local import LocalJob, job_of, prompts, rows_of, write_jsonl

LONG_S = 30


def take_over(local):
    """What a second driver does."""
    job, corpus = local.job, local.corpus
    return Log.open(
        open_storage(job.output.path),
        job=job.identity(),
        inputs=corpus.files,
        schema=schema_to_text(corpus.schema),
        now=time.time,
        takeover=True,
    )


def test_a_fenced_commit_is_refused_and_the_process_ends(tmp_path):
    gone = threading.Event()
    job = job_of(tmp_path, prompts(20))
    local = LocalJob(job, exit=lambda code: gone.set())
    worker = local.worker("w0")
    take_over(local)
    before = replay(open_storage(job.output.path)).next
    worker.start()
    with pytest.raises(Fenced, match="took over"):
        worker.run()
    assert gone.wait(LONG_S)
    assert replay(open_storage(job.output.path)).next == before, "the old one appended nothing"
    assert isinstance(local.ledger.next("w1", 0), Stop)
    assert not rows_of(job)


def test_a_ledger_whose_driver_is_gone_ends(tmp_path, monkeypatch):
    gone = threading.Event()
    dead = Owner(socket.gethostname(), 2**22 + 1, "0")
    monkeypatch.setattr(Owner, "me", classmethod(lambda cls: dead))
    LocalJob(job_of(tmp_path, prompts(3)), exit=lambda code: gone.set())
    assert gone.wait(LONG_S)


def test_a_ledger_whose_driver_lives_stays(tmp_path):
    gone = threading.Event()
    LocalJob(job_of(tmp_path, prompts(3)), exit=lambda code: gone.set())
    assert not gone.wait(2.5)


def test_a_second_start_is_refused_while_the_first_lives(tmp_path, monkeypatch):
    job = job_of(tmp_path, prompts(3))
    LocalJob(job)
    other = Owner(socket.gethostname(), os.getppid(), "another process")
    monkeypatch.setattr(Owner, "me", classmethod(lambda cls: other))
    with pytest.raises(UserError, match="another run"):
        LocalJob(job)


def test_a_job_whose_folder_travels_goes_on_under_another_path(tmp_path, monkeypatch):
    """What a submitted folder does on a cluster: the same relative path, another folder each time."""
    rows = prompts(40)
    for name in ("first", "second", "changed"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "in.jsonl", rows if name != "changed" else rows[:-1])
    job = job_of(tmp_path, "in.jsonl", output={"flush_s": 0.05})
    monkeypatch.chdir(tmp_path / "first")
    done = LocalJob(job).until(8)
    assert 8 <= done < len(rows)
    monkeypatch.chdir(tmp_path / "changed")
    with pytest.raises(UserError, match=r"in\.jsonl was part of this job and is gone"):
        LocalJob(job)
    monkeypatch.chdir(tmp_path / "second")
    local = LocalJob(job)
    assert local.opened.rows == done
    local.run()
    assert [row["id"] for row in rows_of(job)] == sorted(row["name"] for row in rows)


def test_a_slow_read_delays_no_message(tmp_path):
    job, slow = job_of(tmp_path, prompts(20)), threading.Event()

    def stuck(corpus, units):
        slow.wait()
        yield from ()

    local = LocalJob(job, blocks=stuck)
    assert isinstance(local.ledger.next("w0", 0), Wait)
    local.ledger.report("w0", [], [], 0, 0, None)
    assert local.ledger.look().progress.workers == 1
    slow.set()
    deadline = time.monotonic() + LONG_S
    ticket = 1
    while not isinstance(reply := local.ledger.next("w0", ticket), Lease):
        ticket += 1
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reply.ref is None


def test_a_stalled_worker_is_to_be_killed_once(tmp_path):
    local = LocalJob(job_of(tmp_path, prompts(20)), limits=Limits(stall_s=0.1))
    ticket = 0
    deadline = time.monotonic() + LONG_S
    while not isinstance(reply := local.ledger.next("w0", ticket), Lease):
        ticket += 1
        assert time.monotonic() < deadline
        time.sleep(0.01)
    local.ledger.report("w0", list(reply.todo), [], 0, 0, 0.01)
    kills = []
    deadline = time.monotonic() + LONG_S
    while not kills and time.monotonic() < deadline:
        kills += local.ledger.look().kills
        time.sleep(0.05)
    time.sleep(2.2)
    kills += local.ledger.look().kills
    assert [kill.worker for kill in kills] == ["w0"]
    assert "no token" in kills[0].reason


def test_a_look_says_how_long_the_output_has_not_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.ledger.LOOK_S", 0.05)
    local = LocalJob(job_of(tmp_path, prompts(4)))
    assert local.ledger.look().storage_s == 0.0
    writing, answered = threading.Event(), threading.Event()

    def write(*arguments):
        writing.set()
        assert answered.wait(LONG_S)
        raise OSError("the share is gone")

    monkeypatch.setattr(local.ledger._core.log, "commit", write)
    errors = []

    def commit():
        local.ledger.next("w0", 0)
        try:
            local.ledger.commit("w0", [])
        except JobError as error:
            errors.append(str(error))

    thread = threading.Thread(target=commit)
    thread.start()
    assert writing.wait(LONG_S)
    assert local.ledger.look().storage_s > 0
    answered.set()
    thread.join(LONG_S)
    assert "the share is gone" in errors[0]
    assert local.ledger.look().storage_s == 0.0


def test_inputs_that_another_run_added_meanwhile_are_not_mixed_up(tmp_path):
    from tests.actors.local import write_jsonl

    first = job_of(tmp_path, str(tmp_path / "*.jsonl"))
    write_jsonl(tmp_path / "a.jsonl", prompts(3))
    local = LocalJob(first)
    write_jsonl(tmp_path / "b.jsonl", prompts(3))
    second = LocalJob(first)
    with pytest.raises(JobError, match="run the command again"):
        local.ledger.open(first.identity(), schema_to_text(local.corpus.schema), Owner.me(), takeover=True)
    assert second.opened.attempt == 2
