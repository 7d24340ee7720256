"""The HTTP request (or batch line) that is being answered, for everything that tells of it.

`Observing` is the outermost layer of the app: it gives every request an id (the client's `X-Request-Id` where that is
a decent one), opens the trace that `traceparent` continues, and tells when the last byte has gone. Between the two,
`current` is the request at hand, in whatever task works on it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydecode.events import OutcomeEvent

HEADER = "x-request-id"
_DECENT = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


@dataclass(slots=True)
class Inquiry:
    """What is known of a request so far. span: of its trace, or None."""

    id: str
    method: str = ""
    route: str = ""
    status: int = 0
    model: str = ""
    key: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    began: float = 0.0
    seconds: float = 0.0
    disconnected: bool = False
    span: Any = None

    def took(self, outcomes: Sequence[OutcomeEvent], tokens: int) -> None:
        """A stream of it is over."""
        self.prompt_tokens += max((one.stats.prompt_tokens for one in outcomes), default=0)
        self.output_tokens += sum(len(one.tokens) for one in outcomes) or tokens


current: ContextVar[Inquiry | None] = ContextVar("inquiry", default=None)


class Watcher(Protocol):
    """Who is told of requests. None of these may raise or wait."""

    def arrived(self, inquiry: Inquiry, headers: Mapping[str, str]) -> None: ...
    def answered(self, inquiry: Inquiry) -> None: ...


def request_id(given: str | None = None) -> str:
    return given if given and _DECENT.fullmatch(given) else f"req-{secrets.token_hex(12)}"


class Observing:
    """app: whose requests are told of;  watchers: to whom"""

    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher]) -> None:
        self._app, self._watchers = app, tuple(watchers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        inquiry = Inquiry(request_id(headers.get(HEADER)), scope["method"], began=time.monotonic())
        scope.setdefault("state", {})["request_id"] = inquiry.id
        for one in self._watchers:
            one.arrived(inquiry, headers)
        token = current.set(inquiry)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                inquiry.status = message["status"]
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), inquiry.id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            inquiry.status = inquiry.status or 500
            raise
        except BaseException:  # cancelled: its reader has gone
            inquiry.disconnected = True
            raise
        finally:
            current.reset(token)
            route = scope.get("route")
            inquiry.route = getattr(route, "path", "") or "other"
            inquiry.key = str(getattr(scope["state"].get("account"), "name", ""))
            inquiry.seconds = time.monotonic() - inquiry.began
            for one in self._watchers:
                one.answered(inquiry)
