"""An engine behind asyncio: requests in, a stream of events per request out. Decides nothing about texts.

    live = LiveEngine(build, slots=32, queue=256)
    await live.start()
    stream = live.open(request)
    async for events in stream: ...

One thread steps the engine (`actors/lanes.py`); each step's events cross to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from actors.lanes import Lanes
from raydecode.contracts import Engine
from raydecode.errors import RaydecodeError, UserError
from raydecode.events import Event, OutcomeEvent, StepEvent
from raydecode.request import DecodingSpec, Prompt, Request, Text
from serve_app.gateway import Lane, Overloaded, Unavailable

STALL_S, STALL_STEPS = 60.0, 20.0
"""An engine whose step takes longer than both, the second in median steps, does not come back."""
LONGEST_WAIT_S = 60.0
PROBE = "raydecode-probe"


class EngineDied(RaydecodeError):
    """The engine's thread ended, or a step does not: this process is of no use any more."""


class LiveStream:
    """One request's events, in lists: what came since the last look. Not listening does not stop it, `aclose` does.

    out: takes each event instead, in the event loop; `ended` then waits for the end
    """

    migrations = 0

    def __init__(
        self, live: LiveEngine, request: Request, steps: bool, out: Callable[[Event], None] | None, lane: Lane
    ) -> None:
        self._live, self._id, self._steps, self.lane = live, request.id, steps, lane
        self._left = max(1, request.decoding.n)
        self._ready: deque[Event] = deque()
        self._out = out or self._ready.append
        self._news = asyncio.Event()
        self._failure: Exception | None = None
        self.began = time.monotonic()

    def __aiter__(self) -> LiveStream:
        return self

    @property
    def left(self) -> int:
        """Samples that have not ended."""
        return self._left

    async def ended(self) -> None:
        """Wait for the last event, or for `aclose`. Raises what ended the stream otherwise."""
        while self._left:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()

    async def __anext__(self) -> list[Event]:
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if not self._left:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        out = list(self._ready)
        self._ready.clear()
        return out

    async def aclose(self) -> None:
        """Nobody listens any more: the slot is free before the next step."""
        self._live.forget(self._id, self)
        self._left = 0
        self._ready.clear()
        self._news.set()

    def push(self, event: Event) -> bool:
        """Take an event; True when it was the last."""
        if not self._left or (isinstance(event, StepEvent) and not self._steps):
            return False
        self._out(event)
        self._left -= isinstance(event, OutcomeEvent)
        self._news.set()
        return not self._left

    def fail(self, error: Exception) -> None:
        self._failure = error
        self._news.set()


class LiveEngine:
    """build: makes the engine, with `stream`, in its own thread
    slots:  of the engine
    queue:  most requests of a lane that wait for a slot
    probe:  the decoding of the request by which `start` finds out whether the model answers
    """

    def __init__(
        self, build: Callable[[], Engine], *, slots: int, queue: int, probe: DecodingSpec | None = None
    ) -> None:
        self.slots, self.queue, self._probe = slots, queue, probe or DecodingSpec()
        self._lanes = Lanes(build, slots, self._sent, self._woken)
        self._streams: dict[str, LiveStream] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._took = 1.0  # seconds of a request, a moving mean
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Build the engine and let it answer once. Raises what building raises, and Unavailable."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._lanes.start)
        spec = dataclasses.replace(self._probe, n=1, max_tokens=2, stop=(), logprobs=None, deadline_s=None)
        async for events in self.open(Request(PROBE, PROBE, Text("a"), spec, overflow="cut_left")):
            for event in events:
                if isinstance(event, OutcomeEvent) and event.error:
                    raise Unavailable(f"the model does not answer: {event.error.kind}: {event.error.message}")

    @property
    def engine(self) -> Any:
        return self._lanes.engine

    @property
    def lanes(self) -> Lanes:
        """Counts: tokens, steps, yields, waiting and running by lane."""
        return self._lanes

    def open(
        self,
        request: Request,
        lane: Lane = "interactive",
        steps: bool = False,
        out: Callable[[Event], None] | None = None,
    ) -> LiveStream:
        """Start a request. Raises Overloaded, Unavailable, and UserError for an id that is in use."""
        self.check()
        if self._draining:
            raise Unavailable("this replica is draining")
        if request.id in self._streams:
            raise UserError("this id is in use", field="id", value=request.id, hint="ids of running requests differ")
        waiting = self._waiting(lane)
        if waiting >= self.queue:
            most = f"{waiting} requests wait for one of {self.slots} slots, no more may"
            raise Overloaded(most, min(LONGEST_WAIT_S, max(1.0, self._took * waiting / self.slots)))
        stream = LiveStream(self, request, steps, out, lane)
        self._streams[request.id] = stream
        self._lanes.put(request, lane)
        return stream

    def _waiting(self, lane: Lane) -> int:
        """Open requests of the lane that the slots cannot hold. Counted here: the engine's thread has its own moment at
        which what was put is admitted, and a burst on an idle engine would look like a queue."""
        before = [stream for stream in self._streams.values() if stream.lane == "interactive"]
        own = [stream for stream in self._streams.values() if stream.lane == "batch"] if lane == "batch" else []
        free, waiting = self.slots, 0
        for stream in (*before, *own):
            free -= stream.left
            waiting += free < 0 and stream.lane == lane
        return waiting

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """Token id -> its bytes."""
        return self.engine.token_bytes

    async def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, as the engine reads it. Raises RowError."""
        return await asyncio.to_thread(self.engine.encode, prompt)

    def check(self) -> None:
        """Raises EngineDied."""
        if self._lanes.failure:
            raise EngineDied(self._lanes.failure)
        stuck = self._lanes.stuck_s
        if stuck > max(STALL_S, STALL_STEPS * (self._lanes.step_s or 0.0)) and self._lanes.steps:
            raise EngineDied(f"a step has been running for {stuck:.0f} s")

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing new and let what runs end; False when something still runs after `timeout_s`."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self._idle.clear()
                    await self._idle.wait()
        return not self._streams

    async def close(self) -> None:
        """End the thread and give the engine's memory back; streams that still run fail."""
        self._draining = True
        self._lanes.leave()
        self._fail(Unavailable("the server stops"))
        await asyncio.to_thread(self._lanes.join)
        close = getattr(getattr(self._lanes, "engine", None), "close", None)
        if close:
            close()

    def forget(self, id: str, stream: LiveStream) -> None:
        """The stream's reader has gone; harmless behind its end."""
        if self._streams.get(id) is stream:
            self._lanes.cancel(id)
            self._ended(id)

    # ------------------------------------------------------------------ from the engine's thread
    def _sent(self, events: Sequence[Event]) -> None:
        self._call(self._deliver, events)

    def _woken(self) -> None:
        if self._lanes.failure:
            self._call(self._fail, EngineDied(self._lanes.failure))

    def _call(self, what: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(what, *args)

    # ------------------------------------------------------------------ in the event loop
    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            id = event.row.request
            stream = self._streams.get(id)
            if stream is not None and stream.push(event):
                self._took += 0.1 * (time.monotonic() - stream.began - self._took)
                self._ended(id)

    def _ended(self, id: str) -> None:
        del self._streams[id]
        if not self._streams:
            self._idle.set()

    def _fail(self, error: Exception) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        self._idle.set()
