"""kill -9 of a server in the middle of a batch: the next goes on where the log ends, every line is there once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from raydecode.corpus.history import replay
from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from serve_app.batches.records import BatchStore
from tests.conftest import ROOT

ROWS = 60
AHEAD = 8
"""Lines that a server may open beyond those that its kill waits for: some are in flight then, and some are left."""


class Server:
    """A process of driver.py; `api` is OpenAI's client of it. most: lines that it opens; None: all"""

    def __init__(self, folder: Path, name: str, most: int | None) -> None:
        port = folder / name
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.serve_app.batches.driver", str(folder / "store"), str(port)]
        command += [] if most is None else [str(most)]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT)
        until(lambda: port.exists() and port.read_text() != "", self.process)
        url = f"http://127.0.0.1:{port.read_text()}/v1"
        self.api = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


def until(true, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not true():
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end
        time.sleep(0.05)


def line(i: int) -> str:
    body = {"model": "toy", "prompt": "ab" * (i % 4 + 1), "seed": i, "max_tokens": 40, "temperature": 1.1}
    return json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body})


@pytest.mark.parametrize("kills", [(10,), pytest.param((5, 15, 30), marks=pytest.mark.slow)])
def test_a_killed_server_goes_on_with_its_batches(tmp_path, kills):
    assert kills[-1] + AHEAD * len(kills) < ROWS
    lots = [n - before + AHEAD for before, n in zip((0, *kills[:-1]), kills, strict=True)]
    servers = [Server(tmp_path, "first", lots[0])]
    try:
        api = servers[0].api
        file = api.files.create(file=("in.jsonl", "\n".join(line(i) for i in range(ROWS)).encode()), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        store = BatchStore(str(tmp_path / "store"))
        rows = open_storage(store.rows(batch.id))
        for n, lot in zip(kills, [*lots[1:], None], strict=True):
            until(lambda n=n: replay(rows).rows >= n, servers[-1].process)
            servers[-1].kill()
            assert replay(rows).rows < ROWS
            servers.append(Server(tmp_path, f"after{n}", lot))
        api = servers[-1].api
        until(lambda: api.batches.retrieve(batch.id).status == "completed", servers[-1].process)
        batch = api.batches.retrieve(batch.id)
        assert batch.request_counts.model_dump() == {"total": ROWS, "completed": ROWS, "failed": 0}
        lines = [json.loads(one) for one in api.files.content(batch.output_file_id).text.splitlines()]
        assert [one["custom_id"] for one in lines] == [f"r{i}" for i in range(ROWS)]
        state = replay(rows)
        assert (state.rows, state.attempt) == (ROWS, 1 + len(kills))
        assert verify(rows).ok
        texts = {}
        for i in (0, 7, ROWS - 1):
            body = json.loads(line(i))["body"]
            texts[f"r{i}"] = api.completions.create(**body).choices[0].text
        by_id = {one["custom_id"]: one["response"]["body"]["choices"][0]["text"] for one in lines}
        assert all(by_id[id] == text for id, text in texts.items())
        assert state.rerun < ROWS
    finally:
        for server in servers:
            server.kill()
