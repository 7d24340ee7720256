"""hf:// against a Hub of this machine: read as input, refused as output; and a scheme whose package is missing."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from raydecode.config import JobConfig
from raydecode.corpus.discover import discover
from raydecode.corpus.inputs import open_corpus, plan_units, read_units
from raydecode.corpus.intervals import Cover
from raydecode.corpus.rows import block_rows
from raydecode.corpus.storage import open_storage
from raydecode.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = [{"prompt": f"question {i}"} for i in range(5)]


class Answer(BaseHTTPRequestHandler):
    """One dataset, `org/name`, as the Hub answers for it."""

    files = {"data/train.jsonl": "".join(json.dumps(one) + "\n" for one in LINES).encode(), "README.md": b"x"}

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_POST(self):
        paths = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self._reply([self._described(path) for path in paths if path in self.files])

    def do_GET(self, body=True):
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        if parts[0] == "api":
            if "tree" not in parts:
                return self._reply({"id": "org/name", "sha": COMMIT, "siblings": [], "private": False, "tags": []})
            below = "/".join(parts[6:])
            names = [name for name in self.files if name.startswith(below)]
            deep = "recursive=True" in self.path or "recursive=true" in self.path
            folders = sorted({name.rpartition("/")[0] for name in names if "/" in name} - {below})
            listing = [self._described(name) for name in names if deep or name.rpartition("/")[0] == below]
            return self._reply([*({"type": "directory", "path": f, "oid": "1"} for f in folders), *listing])
        data = self.files["/".join(parts[5:])]
        start, end = 0, len(data)
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last or end) + 1)
        self._send(206 if "Range" in self.headers else 200, data[start:end], body)

    def _described(self, name):
        oid = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": oid}

    def _reply(self, value):
        self._send(200, json.dumps(value).encode())

    def _send(self, status, data, body=True):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"e"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        """Silence."""


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import HfFileSystem, constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        HfFileSystem.clear_instance_cache()
        yield
        server.shutdown()
    HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("path", ["data/train.jsonl", "data/*.jsonl", "data"])
def test_a_dataset_of_the_hub_is_an_input(hub, tmp_path, path):
    files = discover(f"hf://datasets/org/name/{path}")
    assert [file.path for file in files] == ["hf://datasets/org/name/data/train.jsonl"]
    corpus = open_corpus(files, root=str(tmp_path))
    rows = [row for _, block in read_units(corpus, plan_units(corpus, Cover())) for row in block_rows(block)]
    assert rows == LINES
    assert discover(f"hf://datasets/org/name/{path}", known=files) == files, "unchanged by its hash"


def test_the_hub_is_no_output():
    job = {"model": "toy", "input": {"path": "p"}, "output": {"path": "hf://datasets/org/name/out"}}
    with pytest.raises(UserError, match=r"(?s)output.path.*cannot be written exclusively.*local folder"):
        JobConfig.model_validate(job)


def test_a_scheme_without_its_package_says_which(monkeypatch):
    from fsspec.registry import _registry, known_implementations

    missing = {"class": "no_such_package.Nothing", "err": "Install gcsfs"}
    monkeypatch.setitem(known_implementations, "gs", missing)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(UserError, match=r"(?s)output.path.*Install gcsfs"):
        open_storage("gs://bucket/out")
    with pytest.raises(UserError, match=r"(?s)output.path.*nowhere"):
        open_storage("nowhere://bucket/out")
