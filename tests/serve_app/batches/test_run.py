"""Batches from the file to their results: every line once, invalid ones too, cancelled, expired, resumed."""

import asyncio
import errno
import threading
import time

import pytest

from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from serve_app.batches import results, run
from serve_app.batches.files import FileStore
from serve_app.batches.proxy import Answered
from serve_app.batches.records import BatchStore
from serve_app.batches.run import Run, Settings
from tests.serve_app.batches.local import QUICK, Service, echo, line, looping, response, running


def test_every_line_has_its_answer_in_the_order_of_the_file(tmp_path):
    service = Service(tmp_path)
    id = service.create("\n".join(line(f"r{i}", f"p{i}") for i in range(40)))
    with running(service):
        batch = service.until(id)
    said = batch.to_json()
    assert (said["status"], said["model"]) == ("completed", "toy")
    assert said["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert said["usage"]["total_tokens"] == 40 * 5
    assert said["error_file_id"] is None
    lines = service.lines(said["output_file_id"])
    assert [one["custom_id"] for one in lines] == [f"r{i}" for i in range(40)]
    assert [one["response"]["body"]["said"] for one in lines] == [f"p{i}" for i in range(40)]
    assert all(one["error"] is None for one in lines)
    assert len({one["id"] for one in lines}) == 40
    assert service.files.get(said["output_file_id"]).purpose == "batch_output"
    assert not list((tmp_path / "rows").rglob("*.parquet")), "the results have them"


def test_lines_that_are_none_are_error_lines_and_lose_nothing(tmp_path):
    bad = ["{broken", line(7), line("a", url="/v1/other"), line("good0"), "[]", line("x", body=None)]
    text = "\n".join([*(line(f"good{i}") for i in range(8)), *bad, line("last")]) + "\n"
    service = Service(tmp_path)
    id = service.create(text)
    with running(service):
        batch = service.until(id)
    said = batch.to_json()
    assert said["status"] == "completed"
    assert said["request_counts"] == {"total": 15, "completed": 9, "failed": 6}
    errors = service.lines(said["error_file_id"])
    assert [one["error"]["code"] for one in errors] == [
        "invalid_json_line", "invalid_custom_id", "mismatched_endpoint", "duplicate_custom_id", "invalid_json_line",
        "invalid_body",
    ]  # fmt: skip
    assert "line 9" in errors[0]["error"]["message"]
    assert [one["custom_id"] for one in errors] == [None, None, "a", "good0", None, "x"]
    assert all(one["response"] is None for one in errors)


def test_bytes_that_are_no_text_are_error_lines(tmp_path):
    service = Service(tmp_path)
    file = service.files.create([line("a").encode() + b"\n\xff\xfe{}\n"], filename="x", purpose="batch")
    made = service.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="1h", window_s=3600, metadata=None
    )
    with running(service):
        said = service.until(made.id).to_json()
    assert said["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


def test_a_body_that_is_too_large_is_an_error_line(tmp_path):
    service = Service(tmp_path)
    id = service.create("\n".join([line("a"), line("b", "x" * 20_000)]))
    with running(service, settings=Settings(slots=4, flush_s=0.05, body_bytes=10_000)):
        batch = service.until(id)
    lines = service.results(batch)
    assert lines["a"]["response"]["status_code"] == 200
    assert lines["b"]["error"] == {"code": "body_too_large", "message": "line 2: the body is larger than 10,000 bytes"}


def test_an_answer_that_is_an_error_keeps_its_body(tmp_path):
    async def refuse(batch, asked):
        if asked.body["prompt"] == "bad":
            return Answered(response({"error": {"message": "no such field", "param": "temprature"}}, 400))
        if asked.body["prompt"] == "raise":
            raise RuntimeError("a bug")
        return await echo(batch, asked)

    service = Service(tmp_path)
    id = service.create("\n".join([line("a"), line("b", "bad"), line("c", "raise")]))
    with running(service, refuse):
        batch = service.until(id)
    lines = service.results(batch)
    assert lines["b"]["response"]["body"]["error"]["param"] == "temprature"
    assert lines["b"]["error"] is None
    assert lines["c"]["response"] is None
    assert lines["c"]["error"]["code"] == "runtime_error"
    assert batch.to_json()["request_counts"] == {"total": 3, "completed": 1, "failed": 2}


@pytest.mark.parametrize(
    ("text", "code"), [("\n \n", "empty_file"), ("\n".join(line(f"{i}") for i in range(6)), "too_many_requests")]
)
def test_a_file_that_cannot_be_run_fails_with_the_cause(tmp_path, text, code):
    service = Service(tmp_path)
    id = service.create(text)
    with running(service, settings=Settings(lines=5)):
        said = service.until(id).to_json()
    assert said["status"] == "failed"
    assert [one["code"] for one in said["errors"]["data"]] == [code]
    assert said["failed_at"]


def test_a_file_that_is_gone_fails(tmp_path):
    service = Service(tmp_path)
    id = service.create(line("a"))
    service.files.delete(service.batches.get(id).created["input_file_id"])
    with running(service):
        assert service.until(id).to_json()["errors"]["data"][0]["code"] == "file_not_found"


def test_cancelling_keeps_what_is_answered(tmp_path):
    release = threading.Event()

    async def some(batch, asked):
        while asked.custom_id >= "r05" and not release.is_set():
            await asyncio.sleep(0.01)
        return await echo(batch, asked)

    service = Service(tmp_path)
    id = service.create("\n".join(line(f"r{i:02}", f"p{i}") for i in range(20)))
    with running(service, some) as runner:
        service.until(id, lambda batch: batch.done >= 5)
        service.batches.put(id, "cancelling")
        runner.poke()
        assert service.batches.get(id).status in ("cancelling", "cancelled")
        batch = service.until(id)
    said = batch.to_json()
    assert said["status"] == "cancelled"
    assert said["request_counts"] == {"total": 20, "completed": 5, "failed": 15}
    assert said["cancelling_at"]
    assert said["cancelled_at"]
    lines = service.results(batch)
    assert all(lines[f"r{i:02}"]["response"]["body"]["said"] == f"p{i}" for i in range(5))
    assert {lines[f"r{i:02}"]["error"]["code"] for i in range(5, 20)} == {"batch_cancelled"}


def test_a_window_that_ends_is_said_line_by_line(tmp_path):
    async def never(batch, asked):
        if asked.custom_id == "quick":
            return await echo(batch, asked)
        await asyncio.sleep(3600)
        raise AssertionError

    now = [1000.0]
    service = Service(tmp_path, clock=lambda: now[0])
    id = service.create("\n".join([line("quick"), line("slow")]), window_s=60)
    with running(service, never, clock=lambda: now[0]) as runner:
        service.until(id, lambda batch: batch.done >= 1)
        now[0] += 60
        runner.poke()
        batch = service.until(id)
    said = batch.to_json()
    assert said["status"] == "expired"
    assert said["expired_at"]
    assert service.results(batch)["slow"]["error"]["code"] == "batch_expired"
    assert said["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


def test_one_that_was_cancelled_before_it_began_runs_nothing(tmp_path):
    asked = []

    async def note(batch, line):
        asked.append(line)
        return await echo(batch, line)

    service = Service(tmp_path)
    id = service.create("\n".join(line(f"{i}") for i in range(3)))
    service.batches.put(id, "cancelling")
    with running(service, note):
        said = service.until(id).to_json()
    assert said["status"] == "cancelled"
    assert said["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert not asked


def test_a_runner_that_stops_leaves_the_batch_to_the_next(tmp_path):
    asked: list[str] = []
    gate = threading.Event()

    async def slow(batch, line):
        asked.append(line.custom_id)
        while line.custom_id >= "r10" and not gate.is_set():
            await asyncio.sleep(0.01)
        return await echo(batch, line)

    service = Service(tmp_path)
    id = service.create("\n".join(line(f"r{i:02}", f"p{i}") for i in range(30)))
    with running(service, slow):
        service.until(id, lambda batch: batch.done >= 10)
    assert service.batches.get(id).status == "in_progress"
    assert service.batches.get(id).done >= 10
    first = list(asked)
    asked.clear()
    gate.set()
    with running(service, slow):
        batch = service.until(id)
    assert batch.to_json()["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert not {f"r{i:02}" for i in range(10)} & set(asked), "what was committed is not run again"
    assert set(first) | set(asked) == {f"r{i:02}" for i in range(30)}


def test_a_crash_between_the_results_and_the_end_makes_the_same_files(tmp_path, monkeypatch):
    service = Service(tmp_path)
    id = service.create("\n".join([line("a"), "{broken"]))
    put = service.batches.put

    def dies(batch, kind, **said):
        if kind == "ended":
            raise SystemExit("killed")
        return put(batch, kind, **said)

    monkeypatch.setattr(service.batches, "put", dies)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with running(service):
        service.until(id, lambda batch: batch.finalizing is not None and len(service.files.all()) == 3)
    files = {file.id for file in service.files.all()}
    again = Service(tmp_path)
    with running(again):
        said = again.until(id).to_json()
    assert said["status"] == "completed"
    assert {file.id for file in again.files.all()} == files
    assert {said["output_file_id"], said["error_file_id"]} < files
    assert said["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


def test_two_servers_that_write_the_results_at_once_end_with_one_set(tmp_path, monkeypatch):
    """The second reads its rows when the first has ended the batch and cleared them away."""
    service, other = Service(tmp_path), Service(tmp_path)
    id = service.create("\n".join(line(f"r{i}", f"p{i}") for i in range(5)))
    put = service.batches.put

    def dies(batch, kind, **said):
        if kind == "finalizing":
            put(batch, kind, **said)
            raise SystemExit("killed")
        return put(batch, kind, **said)

    monkeypatch.setattr(service.batches, "put", dies)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with running(service):
        service.until(id, lambda batch: batch.finalizing is not None)
    inner, batch = results.result_lines, other.batches.get(id)

    def late(*args):
        monkeypatch.setattr(results, "result_lines", inner)
        with looping() as loop:
            Run(batch, FileStore(str(tmp_path)), BatchStore(str(tmp_path)), echo, loop, QUICK)()
        assert not list((tmp_path / "rows").rglob("*.parquet"))
        return inner(*args)

    monkeypatch.setattr(results, "result_lines", late)
    with looping() as loop:
        Run(batch, other.files, other.batches, echo, loop, QUICK)()
    said = other.batches.get(id)
    assert said.to_json()["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert {one["response"]["body"]["said"] for one in other.results(said).values()} == {f"p{i}" for i in range(5)}
    found = {file.id for file in other.files.all()}
    assert found == {said.created["input_file_id"], said.ended["output_file_id"]}, "no file of lines without an answer"
    assert len(other.files.storage.list("content")) == 2


def test_a_server_that_comes_late_asks_nothing_again(tmp_path, monkeypatch):
    """The other ends the batch while this one reads its file through."""
    asked, service, inner = [], Service(tmp_path), run.survey
    id = service.create("\n".join(line(f"{i}") for i in range(5)))
    batch = service.batches.get(id)

    async def counted(batch, line):
        asked.append(line.custom_id)
        return await echo(batch, line)

    def late(*given):
        monkeypatch.setattr(run, "survey", inner)
        with looping() as loop:
            Run(batch, FileStore(str(tmp_path)), BatchStore(str(tmp_path)), counted, loop, QUICK)()
        return inner(*given)

    monkeypatch.setattr(run, "survey", late)
    with looping() as loop:
        Run(batch, service.files, service.batches, counted, loop, QUICK)()
    assert sorted(asked) == [f"{i}" for i in range(5)]
    assert service.batches.get(id).to_json()["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert not [path for path in (tmp_path / "rows").rglob("*") if path.is_file()]


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(tmp_path, monkeypatch):
    from raydecode.corpus import storage

    monkeypatch.setattr("serve_app.batches.runner.AGAIN_S", 0.1)
    full, write = threading.Event(), storage.LocalStorage.write
    full.set()

    def maybe(self, path, data):
        if full.is_set() and path.startswith("_tmp/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, path, data)

    monkeypatch.setattr(storage.LocalStorage, "write", maybe)
    service = Service(tmp_path)
    id = service.create("\n".join(line(f"{i}") for i in range(10)))
    with running(service) as runner:
        service.until(id, lambda batch: batch.started is not None and runner._again.get(id) is not None)
        assert service.batches.get(id).status == "in_progress"
        full.clear()
        runner.poke()
        said = service.until(id).to_json()
    assert said["request_counts"] == {"total": 10, "completed": 10, "failed": 0}


def test_the_log_quotes_nothing_of_an_unforeseen_error(tmp_path, monkeypatch, caplog):
    def fails(self, found):
        raise ValueError("a secret prompt")

    monkeypatch.setattr(Run, "_generate", fails)
    monkeypatch.setattr("serve_app.batches.runner.AGAIN_S", 0.0)
    monkeypatch.setattr("serve_app.batches.runner.POLL_S", 0.05)
    service = Service(tmp_path)
    id = service.create(line("a"))
    with running(service):
        said = service.until(id).to_json()
    assert said["status"] == "failed"
    assert f"{id} failed, 5 of 5 times" in caplog.text
    assert "ValueError" in caplog.text
    assert "in fails" in caplog.text
    assert "secret" not in caplog.text.replace('raise ValueError("a secret prompt")', "")


def test_the_rows_are_an_output_that_verify_reads(tmp_path):
    service = Service(tmp_path)
    id = service.create("\n".join([*(line(f"{i}") for i in range(20)), "{broken"]))
    with running(service, settings=Settings(slots=4, flush_s=0.05, keep_rows=True)):
        service.until(id)
    found = verify(open_storage(service.batches.rows(id)))
    assert found.ok, found


def test_batches_wait_for_their_turn(tmp_path):
    begun: list[str] = []
    gate = threading.Event()

    async def slow(batch, line):
        begun.append(batch.id)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return await echo(batch, line)

    service = Service(tmp_path)
    ids = [service.create(line("a")) for _ in range(3)]
    with running(service, slow, QUICK, running=1) as runner:
        service.until(ids[0], lambda batch: bool(begun))
        runner.poke()
        time.sleep(0.3)
        assert len(begun) == 1
        gate.set()
        for id in ids:
            service.until(id)
    assert sorted(begun) == sorted(ids)
