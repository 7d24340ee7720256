"""The Hub's client against a small server on this machine that answers as the Hub does."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from raydecode.models import ModelError, check, hub, load_weights, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories: name -> files, or the error the Hub would answer with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes] | str] = {}
        self.sent: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.repositories.get(name, "RepoNotFound")
        if isinstance(files, str):
            return self._reply(403 if files == "GatedRepo" else 404, b"", body, **{"X-Error-Code": files})
        revision = parts[5] if api and len(parts) > 5 else parts[3] if not api else "main"
        if revision not in ("main", COMMIT):
            return self._reply(404, b"", body, **{"X-Error-Code": "RevisionNotFound"})
        if api and "tree" in parts:
            listing = [{"type": "file", "path": file, "size": len(text), "oid": "0"} for file, text in files.items()]
            return self._reply(200, json.dumps(listing).encode(), body)
        if api:
            siblings = [{"rfilename": file} for file in files]
            described = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self._reply(200, json.dumps(described).encode(), body)
        file = "/".join(parts[4:])
        if body:
            self.server.sent.append(file)
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return self._reply(200, files[file], body, **{"X-Repo-Commit": COMMIT, "ETag": etag})

    def _reply(self, status: int, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub of our own, and an empty local cache of the client."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_snapshot_has_safetensors_and_text_but_no_pickle_and_no_code(
    server: Hub, tiny_folder: Callable[[str], Path]
) -> None:
    files = {path.name: path.read_bytes() for path in tiny_folder("llama").iterdir()}
    extra = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "original/weights.safetensors": b"x"}
    server.repositories["tiny/llama"] = {**files, **extra}
    folder = hub.fetch("tiny/llama", endpoint=server.address)
    assert {path.name for path in folder.iterdir()} == files.keys()
    assert not extra.keys() & set(server.sent)
    assert check(folder).family == "llama"
    expected = load_weights(tiny_folder("llama"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_weights(folder).items())
    server.shutdown()
    assert hub.fetch("tiny/llama", offline=True) == folder
    trusted = locate("tiny/llama", offline=True)
    assert trusted == folder


def test_python_files_come_only_when_trusted(server: Hub, tiny_folder: Callable[[str], Path]) -> None:
    files = {path.name: path.read_bytes() for path in tiny_folder("llama").iterdir()}
    server.repositories["tiny/llama"] = {**files, "modeling.py": b"code"}
    folder = hub.fetch("tiny/llama", endpoint=server.address, trust_remote_code=True)
    assert (folder / "modeling.py").read_bytes() == b"code"


def test_pickles_only_is_refused_before_any_download(server: Hub) -> None:
    server.repositories["tiny/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model.bin\)"):
        hub.fetch("tiny/pickled", endpoint=server.address)
    assert not server.sent


def test_a_repository_of_gguf_files_says_what_to_do(server: Hub) -> None:
    server.repositories["tiny/gguf"] = {"tiny.Q4_1.gguf": b"GGUF"}
    with pytest.raises(ModelError, match="has no safetensors") as refusal:
        hub.fetch("tiny/gguf", endpoint=server.address)
    assert "download tiny.Q4_1.gguf and give its path" in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [("RepoNotFound", "no model tiny/x", "spelling"), ("GatedRepo", "tiny/x is gated", "HF_TOKEN")],
)
def test_absent_and_gated(server: Hub, error: str, message: str, hint: str) -> None:
    server.repositories["tiny/x"] = error
    with pytest.raises(ModelError, match=message) as refusal:
        hub.fetch("tiny/x", endpoint=server.address)
    assert hint in str(refusal.value)


def test_a_missing_revision(server: Hub) -> None:
    server.repositories["tiny/llama"] = {"model.safetensors": b""}
    with pytest.raises(ModelError, match="no revision 'v9'"):
        hub.fetch("tiny/llama", revision="v9", endpoint=server.address)


def test_offline_and_unreachable(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="not in the local Hub cache and offline mode is on"):
        hub.fetch("tiny/llama", offline=True)
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # five tries in 23 s
    with pytest.raises(ModelError, match="cannot be reached"):
        hub.fetch("tiny/llama", endpoint=server.address)
