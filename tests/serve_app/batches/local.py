"""Batches in one process: the real stores, ledger, generation actor and runner; answers come from a plain coroutine."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from serve_app.batches.files import FileStore
from serve_app.batches.input import BatchLine
from serve_app.batches.proxy import Answered
from serve_app.batches.records import Batch, BatchStore
from serve_app.batches.run import Settings
from serve_app.batches.runner import Runner

ENDPOINT = "/v1/completions"
QUICK = Settings(slots=4, flush_s=0.05)


def line(id: object, prompt: str = "ab", **changes) -> str:
    row = {"custom_id": id, "method": "POST", "url": ENDPOINT, "body": {"model": "toy", "prompt": prompt}}
    return json.dumps(row | changes)


def response(body: dict, status: int = 200) -> dict:
    return {"status_code": status, "request_id": "req_1", "body": body}


async def echo(batch: Batch, asked: BatchLine) -> Answered:
    """Says what it was asked, with a usage."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return Answered(response({"said": asked.body["prompt"], "usage": usage}), (1, 2, 3))


class Service:
    """The stores of a folder, and what a test asks of them."""

    def __init__(self, folder: Path | str, clock: Callable[[], float] = time.time) -> None:
        self.files, self.batches = FileStore(str(folder), clock), BatchStore(str(folder), clock)

    def upload(self, text: str) -> str:
        return self.files.create([text.encode()], filename="in.jsonl", purpose="batch").id

    def create(self, text: str, window_s: int = 3600, endpoint: str = ENDPOINT) -> str:
        return self.batches.create(
            input_file_id=self.upload(text), endpoint=endpoint, completion_window="1h", window_s=window_s, metadata=None
        ).id

    def until(self, id: str, what: Callable[[Batch], bool] = lambda batch: batch.ended is not None) -> Batch:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            batch = self.batches.get(id)
            assert batch is not None
            if what(batch):
                return batch
            time.sleep(0.02)
        raise AssertionError(f"{id} is still {batch.to_json()}")

    def lines(self, id: str | None) -> list[dict]:
        """The lines of a result file."""
        return [json.loads(one) for one in b"".join(self.files.read(id)).splitlines()] if id else []

    def results(self, batch: Batch) -> dict[str | None, dict]:
        """custom_id -> line, of both files."""
        found = batch.to_json()
        both = self.lines(found["output_file_id"]) + self.lines(found["error_file_id"])
        return {one["custom_id"]: one for one in both}


@contextmanager
def looping():
    """An event loop on a thread of its own, as a server has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def running(service: Service, answer=echo, settings: Settings = QUICK, **options):
    """A runner at work."""
    with looping() as loop:
        runner = Runner(service.files, service.batches, answer, loop, settings=settings, **options)
        runner.start()
        try:
            yield runner
        finally:
            runner.stop()
