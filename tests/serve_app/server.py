"""A real server on a free port, in a thread: our app over engines in this process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from raydecode.config import ServeConfig, check_serve
from serve_app.ingress import create_app
from serve_app.local import LocalGateway


class Server:
    """config: as in a file. `url`, `gateway`; `http`: a client."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config: ServeConfig = check_serve(config)
        self.gateway: LocalGateway
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # or asyncio leaves Nagle on
        self._sock.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        try:
            async with LocalGateway(self.config) as self.gateway:
                app = create_app(self.gateway, self.config)
                self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
                serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._sock]))
                while not self._uvicorn.started:
                    await asyncio.sleep(0.01)
                self._ready.set()
                await serving
        except BaseException as error:
            self._failure = error
            self._ready.set()

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(60)
        if self._failure:
            raise self._failure
        self.http = httpx.Client(base_url=self.url, timeout=60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self._uvicorn.should_exit = True
        self._thread.join(60)
        self._sock.close()

    def post(self, path: str, body: Mapping[str, Any] | bytes, **headers: str) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(path, content=raw, headers={"content-type": "application/json", **headers})

    def sse(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, without [DONE]."""
        return list(events(self.post(path, {**body, "stream": True}).text))

    def held(self, model: str) -> int:
        """Samples in the engine or before it."""
        engine = self.gateway.engines[model].engine
        return len(engine.running) + engine.waiting


def events(text: str) -> Iterator[dict[str, Any]]:
    for block in text.split("\n\n"):
        data = next((line[6:] for line in block.splitlines() if line.startswith("data: ")), None)
        if data is not None and data != "[DONE]":
            yield json.loads(data)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)
