"""The app over the toy engine in this process, on a free port: what `raydecode serve` serves, without Ray.

`Faults` stands between browser and app as a bad network or a full server would: it turns requests away, cuts streams.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydecode.config import check_serve
from serve_app.ingress import create_app
from serve_app.local import LocalGateway

ROOT = Path(__file__).resolve().parents[3]
CONFIG: dict[str, Any] = {
    "models": [
        {"name": "toy", "model": "toy", "engine": {"name": "toy", "slots": 4}},
        {"name": "second", "model": "toy", "engine": {"name": "toy", "slots": 4}},
    ]
}


class Faults:
    """busy: how many posts are answered 429; cut: pieces after which a stream ends, None: never; last: its last."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.busy, self.last = app, 0, b""
        self.cut: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif path.startswith("/repository/"):  # the tests' own modules, beside the page's
            await FileResponse(ROOT / path.removeprefix("/repository/"))(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.busy:
            self.busy -= 1
            body = {
                "error": {
                    "message": "every slot is taken",
                    "type": "rate_limit_error",
                    "param": None,
                    "code": "overloaded",
                }
            }
            await JSONResponse(body, 429, {"Retry-After": "1"})(scope, receive, send)
        else:
            await self.app(scope, receive, send if self.cut is None else self._cut(send, self.cut))

    def _cut(self, send: Send, left: int) -> Send:
        async def shorter(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body":
                left -= 1
                if left == 0:
                    await send({"type": "http.response.body", "body": self.last, "more_body": False})
                if left <= 0:
                    return
            await send(message)

        return shorter


class Server:
    """Started when made; `close` ends it. sections: of its configuration, besides the models."""

    def __init__(self, **sections: Any) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else Nagle stays on
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        config = check_serve({**CONFIG, **sections})
        self.faults: Faults
        self._up, self._failure = threading.Event(), list[BaseException]()
        self._thread = threading.Thread(target=self._main, args=(config,), daemon=True)
        self._thread.start()
        assert self._up.wait(60), "the server did not start"
        if self._failure:
            raise self._failure[0]

    def _main(self, config: Any) -> None:
        try:
            asyncio.run(self._serve(config))
        except BaseException as error:
            self._failure.append(error)
            self._up.set()

    async def _serve(self, config: Any) -> None:
        async with LocalGateway(config) as gateway:
            self.faults = Faults(create_app(gateway, config))
            settings = uvicorn.Config(self.faults, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
            self._server = uvicorn.Server(settings)
            serving = asyncio.create_task(self._server.serve(sockets=[self.socket]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.01)
            self._up.set()
            await serving

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
