"""The server's engine thread: every step's events go out, requests can be cancelled, and batch rows yield.

Requests of the lane "interactive" are served first, in order. Those of the lane "batch" take slots that are left, and
the youngest of them give theirs up before the step that an interactive one waits for: they are cancelled in the engine,
go back to the head of their queue, and later go on from their ids (`Delivered`), so that their text is what it would
have been. No engine knows of lanes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from actors.delivered import Delivered
from actors.engine_thread import EngineThread
from raydecode.contracts import Engine
from raydecode.events import Event, OutcomeEvent, TokenEvent
from raydecode.request import Request

Lane = Literal["interactive", "batch"]
"""Batch rows take slots that nobody else wants and give them up within a step."""
LANES: tuple[Lane, ...] = ("interactive", "batch")


class _Held:
    """A request that was put here and has not ended. inside: samples that hold a slot of the engine."""

    __slots__ = ("had", "inside", "lane")

    def __init__(self, request: Request, lane: Lane) -> None:
        self.had, self.lane, self.inside = Delivered(request), lane, 0

    @property
    def request(self) -> Request:
        return self.had.request

    @property
    def size(self) -> int:
        return max(1, self.had.request.decoding.n)


class Lanes(EngineThread):
    """sink: takes a step's events, those of running requests, in the engine's thread

    wake: called in the engine's thread when nothing runs, and when it ended (`failure`)
    """

    def __init__(
        self,
        build: Callable[[], Engine],
        slots: int,
        sink: Callable[[Sequence[Event]], None],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(build, wake)
        self.slots, self._sink = slots, sink
        self.tokens = self.yields = 0
        self._put: dict[Lane, deque[Request]] = {lane: deque() for lane in LANES}
        self._dropped: deque[str] = deque()  # these two other threads write
        self._queues: dict[Lane, deque[_Held]] = {lane: deque() for lane in LANES}
        self._inside: dict[str, _Held] = {}  # in order of admission
        self._going: set[str] = set()  # cancelled in the engine, whose last word on them comes with the next step
        self._used: dict[Lane, int] = dict.fromkeys(LANES, 0)

    # ------------------------------------------------------------------ called from any thread
    def put(self, request: Request, lane: Lane = "interactive") -> None:
        """Queue a request; its id is that of no other that is here."""
        self._put[lane].append(request)
        self._more.set()

    def cancel(self, id: str) -> None:
        """Nobody reads it any more: its slots are free before the next step, and no further event comes of it."""
        self._dropped.append(id)
        self._more.set()

    def waiting(self, lane: Lane) -> int:
        """Requests without a slot."""
        return len(self._queues[lane]) + len(self._put[lane])

    def running(self, lane: Lane) -> int:
        """Slots that the lane holds."""
        return self._used[lane]

    # ------------------------------------------------------------------ in the engine's thread
    def _admit(self) -> bool:
        for lane, put in self._put.items():
            while put:
                self._queues[lane].append(_Held(put.popleft(), lane))
        while self._dropped:
            self._drop(self._dropped.popleft())
        urgent, spare = self._queues["interactive"], self._queues["batch"]
        while urgent and self._room(urgent[0].size, self._used["interactive"]):
            while not self._room(urgent[0].size, sum(self._used.values())):
                self._yield()
            if not self._enter(urgent):
                break
        while spare and not urgent and self._room(spare[0].size, sum(self._used.values())) and self._enter(spare):
            pass
        return bool(self._inside or self._going)

    def _room(self, size: int, used: int) -> bool:
        return not used or used + size <= self.slots

    def _enter(self, queue: deque[_Held]) -> bool:
        """The first of a queue goes into the engine, unless that still has its last run to end."""
        held = queue[0]
        if held.request.id in self._going:
            return False
        self._inside[held.request.id] = held
        queue.popleft()
        held.inside = held.size
        self._used[held.lane] += held.size
        self.engine.submit(held.had.begin())
        return True

    def _yield(self) -> None:
        """The youngest batch request gives its slots up and is the next of its lane to have some."""
        held = next(one for one in reversed(self._inside.values()) if one.lane == "batch")
        self._leave_engine(held)
        self._queues["batch"].appendleft(held)
        self.yields += 1

    def _drop(self, id: str) -> None:
        held = self._inside.get(id)
        if held is not None:
            self._leave_engine(held)
            return
        for queue in self._queues.values():
            for held in queue:
                if held.request.id == id:
                    queue.remove(held)
                    return

    def _leave_engine(self, held: _Held) -> None:
        id = held.request.id
        del self._inside[id]
        self._used[held.lane] -= held.inside
        held.inside = 0
        self.engine.cancel(id)
        self._going.add(id)

    def _take(self, events: Sequence[Event]) -> None:
        self._going.clear()
        out: list[Event] = []
        for event in events:
            held = self._inside.get(event.row.request)
            if held is None:
                continue
            news = held.had.new(event)
            if news is not None:
                out.append(news)
            match event:
                case TokenEvent():
                    self.tokens += 1
                case OutcomeEvent():
                    self._freed(held)
            if held.had.done and held.inside:  # it diverged: nobody reads what else comes
                self._leave_engine(held)
        if out:
            self._sink(out)

    def _freed(self, held: _Held) -> None:
        """A sample left the engine."""
        held.inside -= 1
        self._used[held.lane] -= 1
        if held.inside:
            return
        del self._inside[held.request.id]
        if not held.had.done:  # refused to go on from its ids: from the start, then
            self._queues[held.lane].appendleft(held)
