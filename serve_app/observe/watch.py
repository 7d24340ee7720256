"""A gateway around the gateway. It changes nothing, and it is the one place that looks at events for telling of them.

Per list of events a loop over its (one to three) events; all else happens once per stream, when it begins, when its
first token comes and when it ends. Metrics, spans and log lines read the same `Seen`, so they cannot disagree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raydecode.events import Event, OutcomeEvent, TokenEvent
from raydecode.request import Prompt, Request
from serve_app.gateway import Gateway, Lane, Served, Stream
from serve_app.observe.inquiry import Inquiry, current


@dataclass(slots=True)
class Seen:
    """One stream. Times are monotonic seconds, `wall_ns` the Unix time at `opened`.

    first: when the first token came;  ended: when the last outcome came, or nobody listened any more
    error: what the gateway raised;  cancelled: the reader left before the end
    """

    model: str
    lane: Lane
    request: Request
    inquiry: Inquiry | None
    opened: float
    wall_ns: int
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    outcomes: list[OutcomeEvent] = field(default_factory=list)
    error: BaseException | None = None
    cancelled: bool = False
    migrations: int = 0


class Teller(Protocol):
    """Who tells of it. None of these may raise or wait."""

    def began(self, seen: Seen) -> None: ...
    def first(self, seen: Seen) -> None: ...
    def ended(self, seen: Seen) -> None: ...


class WatchedGateway:
    """gateway: whose streams are watched;  tellers: who is told;  lane: of all streams, whatever is asked for"""

    def __init__(self, gateway: Gateway, tellers: Sequence[Teller], lane: Lane | None = None) -> None:
        self._gateway, self._tellers, self._lane = gateway, tuple(tellers), lane

    def models(self) -> Sequence[Served]:
        return self._gateway.models()

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        return await self._gateway.token_bytes(model)

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        return await self._gateway.encode(model, prompt)

    async def ready(self) -> bool:
        return await self._gateway.ready()

    async def open(self, model: str, request: Request, *, lane: Lane = "interactive", steps: bool = False) -> Stream:
        inquiry, lane = current.get(), self._lane or lane
        seen = Seen(model, lane, request, inquiry, time.monotonic(), time.time_ns())
        if inquiry is not None:
            inquiry.model = model
        for one in self._tellers:
            one.began(seen)
        stream = _Watched(seen, self._tellers)
        try:
            stream.inner = await self._gateway.open(model, request, lane=lane, steps=steps)
        except BaseException as error:
            stream.end(error)
            raise
        return stream


class _Watched:
    """A stream that is counted."""

    inner: Stream

    def __init__(self, seen: Seen, tellers: Sequence[Teller]) -> None:
        self._seen, self._tellers = seen, tellers
        self._left = max(1, seen.request.decoding.n)

    @property
    def migrations(self) -> int:
        return self.inner.migrations

    def __aiter__(self) -> _Watched:
        self._next = self.inner.__aiter__().__anext__
        return self

    async def __anext__(self) -> list[Event]:
        try:
            events = await self._next()
        except StopAsyncIteration:
            self.end(None)
            raise
        except Exception as error:
            self.end(error)
            raise
        seen = self._seen
        for event in events:
            kind = type(event)
            if kind is TokenEvent:
                seen.tokens += 1
            elif kind is OutcomeEvent:
                seen.outcomes.append(event)  # type: ignore[arg-type]
        if seen.first is None and seen.tokens:
            seen.first = time.monotonic()
            for one in self._tellers:
                one.first(seen)
        if len(seen.outcomes) >= self._left:
            self.end(None)
        return events

    async def aclose(self) -> None:
        try:
            await self.inner.aclose()
        finally:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The stream is over; told once."""
        seen = self._seen
        if seen.ended is not None:
            return
        seen.ended, seen.error = time.monotonic(), error
        seen.cancelled = error is None and len(seen.outcomes) < self._left
        seen.migrations = self.inner.migrations if hasattr(self, "inner") else 0
        if seen.inquiry is not None:
            seen.inquiry.took(seen.outcomes, seen.tokens)
        for one in self._tellers:
            one.ended(seen)
