"""Between the gateway's streams and a response: several streams as one, a time limit, and a client that may leave.

Law: whatever ends a response (the last outcome, an error, the time limit, a cancelled task, a client that has gone
or does not read), every stream is closed, so its slots are free before the engine's next step.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from raydecode.events import Event, OutcomeEvent, TokenEvent
from raydecode.request import Ids
from serve_app.failures import ApiError, of_exception, of_fault
from serve_app.fold import Piece, Sample
from serve_app.gateway import Gateway, Stream
from serve_app.translate import Call

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
SEND_S = 60.0
"""Longest that a client may leave a chunk unread once the connection's buffers are full."""
SIZE_S = 10.0
"""Longest wait for the size of a prompt whose client has left."""


class Shape(Protocol):
    """How pieces look to the client: see `answers`."""

    def piece(self, prompt: int, sample: int, piece: Piece, migrations: int) -> list[dict[str, Any]]: ...

    def end(self, outcomes: list[list[OutcomeEvent]]) -> list[dict[str, Any]]: ...

    def answer(self, outcomes: list[list[OutcomeEvent]], migrations: int) -> dict[str, Any]: ...


class Relay:
    """The streams of a call.

    until: the loop's time at which all must have ended
    spend: told, at the end, how many tokens of prompts and texts there were, also when the client left before it
    """

    def __init__(self, gateway: Gateway, call: Call, until: float, spend: Callable[[int], None] | None) -> None:
        self._gateway, self._call, self._until, self._spend = gateway, call, until, spend
        self._streams: list[Stream] = []
        self._tokens = 0
        self._begun: set[int] = set()  # prompts of which a token came
        self._paid: set[int] = set()  # those whose size is in `_tokens`
        self._closed = False
        self.outcomes: list[dict[int, OutcomeEvent]] = [{} for _ in call.requests]

    @property
    def migrations(self) -> int:
        return sum(stream.migrations for stream in self._streams)

    @property
    def ended(self) -> list[list[OutcomeEvent]]:
        """The outcomes of every prompt, in order of sample."""
        return [[held[sample] for sample in sorted(held)] for held in self.outcomes]

    async def open(self) -> None:
        """Start all requests, or none."""
        try:
            async with asyncio.timeout_at(self._until):
                for request in self._call.requests:
                    stream = await self._gateway.open(self._call.model, request, steps=self._call.trace)
                    self._streams.append(stream)
        except BaseException:
            await self.aclose()
            raise

    async def events(self) -> AsyncGenerator[tuple[int, list[Event]], None]:
        """(prompt, events) until every sample has ended. A sample that ends in an error ends all: ApiError."""
        source = self._one() if len(self._streams) == 1 else self._merged()
        async with contextlib.aclosing(source):
            while True:
                try:
                    async with asyncio.timeout_at(self._until):
                        prompt, events = await anext(source)
                except StopAsyncIteration:
                    break
                for event in events:
                    match event:
                        case TokenEvent():
                            self._tokens += 1
                            self._begun.add(prompt)
                        case OutcomeEvent():
                            self._end(prompt, event)
                yield prompt, events
        if any(len(held) < self._call.spec.n for held in self.outcomes):
            raise ApiError(503, "the engine ended before the text did", type="server_error", code="unavailable")

    def _end(self, prompt: int, outcome: OutcomeEvent) -> None:
        if prompt not in self._paid:
            self._paid.add(prompt)
            self._tokens += outcome.stats.prompt_tokens
        if outcome.reason in ("error", "cancelled"):
            raise of_fault(outcome.error, self._call.field)
        self.outcomes[prompt][outcome.row.sample] = outcome

    async def _one(self) -> AsyncGenerator[tuple[int, list[Event]], None]:
        async for events in self._streams[0]:
            yield 0, events

    async def _merged(self) -> AsyncGenerator[tuple[int, list[Event]], None]:
        queue: asyncio.Queue[tuple[int, list[Event] | BaseException | None]] = asyncio.Queue()

        async def pump(prompt: int, stream: Stream) -> None:
            end: BaseException | None = None
            try:
                async for events in stream:
                    queue.put_nowait((prompt, events))
            except Exception as error:
                end = error
            queue.put_nowait((prompt, end))

        tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(self._streams)]
        try:
            left = len(tasks)
            while left:
                prompt, events = await queue.get()
                if isinstance(events, BaseException):
                    raise events
                if events is None:
                    left -= 1
                else:
                    yield prompt, events
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Free every slot. Harmless twice."""
        if self._closed:
            return
        self._closed = True
        if self._spend is not None:
            self._spend(self._tokens)
        await asyncio.shield(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        await asyncio.gather(*(stream.aclose() for stream in self._streams), return_exceptions=True)
        if self._spend is not None and (unpaid := self._begun - self._paid):
            sizes = await asyncio.gather(*map(self._size, unpaid), return_exceptions=True)
            self._spend(sum(size for size in sizes if isinstance(size, int)))

    async def _size(self, prompt: int) -> int:
        """Tokens of a prompt that no outcome has told."""
        given = self._call.requests[prompt].prompt
        if isinstance(given, Ids):
            return len(given.ids)
        async with asyncio.timeout(SIZE_S):
            return len(await self._gateway.encode(self._call.model, given))


async def collect(relay: Relay) -> Relay:
    """Run to the end."""
    try:
        await relay.open()
        async with contextlib.aclosing(relay.events()) as events:
            async for _ in events:
                pass
        return relay
    finally:
        await relay.aclose()


async def chunks(relay: Relay, call: Call, shape: Shape, offsets: list[int]) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error before the first is raised; one after it is the stream's last event."""
    begun = False
    folds: dict[tuple[int, int], Sample] = {}
    try:
        await relay.open()
        async with contextlib.aclosing(relay.events()) as events:
            async for prompt, listed in events:
                out: list[dict[str, Any]] = []
                for sample, own in _by_sample(listed).items():
                    fold = folds.get((prompt, sample))
                    if fold is None:
                        scored = call.top is not None
                        fold = folds[prompt, sample] = Sample(scored=scored, trace=call.trace, offset=offsets[prompt])
                    out += shape.piece(prompt, sample, fold.take(own), relay.migrations)
                if out:
                    yield b"".join(map(sse, out))
                    begun = True
        yield b"".join(map(sse, shape.end(relay.ended))) + getattr(shape, "done", DONE)
    except Exception as error:
        if not begun:
            raise
        yield sse(getattr(shape, "failed", _failed)(of_exception(error)))
    finally:
        await relay.aclose()


def _failed(error: ApiError) -> dict[str, Any]:
    return error.body()


def _by_sample(events: list[Event]) -> dict[int, list[Event]]:
    held: dict[int, list[Event]] = {}
    for event in events:
        held.setdefault(event.row.sample, []).append(event)
    return held


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event; those of /v1/responses have a type, which is the event's name."""
    name = event.get("type")
    head = b"event: %s\n" % str(name).encode() if isinstance(name, str) else b""
    return head + b"data: " + to_json(event) + b"\n\n"


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives, unless the client leaves first: then `work` is cancelled and ClientDisconnect raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def left(receive: Receive) -> None:
    """Wait until the client has gone. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Chunks as they come. Starlette's own notices a client that left only when it next sends; this one at once."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect, OSError):  # TimeoutError is one
                await unless_gone(receive, self._send(send))
        finally:
            await self._rest.aclose()

    async def _send(self, send: Send) -> None:
        async def sent(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        await sent({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await sent({"type": "http.response.body", "body": self._first, "more_body": True})
        async for piece in self._rest:
            await sent({"type": "http.response.body", "body": piece, "more_body": True})
        await sent({"type": "http.response.body", "body": b"", "more_body": False})
