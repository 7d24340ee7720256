"""The batch job's engine thread: rows in, outcomes out.

Rows enter the engine only when it has a slot for them, so that "in a slot" is known outside (blame after a crash needs
it); what ended lies in a box until it is collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from actors.engine_thread import EngineThread
from raydecode.contracts import Engine
from raydecode.events import Event, OutcomeEvent, TokenEvent
from raydecode.request import Request


class Stepper(EngineThread):
    """wake: called from the engine's thread when outcomes lie ready or it has room and nothing to run"""

    def __init__(self, build: Callable[[], Engine], slots: int, wake: Callable[[], None]) -> None:
        super().__init__(build, wake)
        self.slots, self.tokens = slots, 0
        self.starved = 0  # steps begun with a free slot and nothing fed: the announcements were too few
        self._fed: deque[Request] = deque()
        self._ended: deque[tuple[str, list[OutcomeEvent]]] = deque()
        self._open: dict[str, tuple[Request, list[OutcomeEvent]]] = {}
        self._held = 0  # samples in the engine

    def feed(self, requests: Iterable[Request]) -> None:
        """Rows that may enter a slot at any time from now on."""
        self._fed.extend(requests)
        self._more.set()

    def ended(self) -> list[tuple[str, list[OutcomeEvent]]]:
        """(request id, its samples' outcomes in order) of every row that left since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    @property
    def fed(self) -> int:
        """Rows given to `feed` that have no slot yet."""
        return len(self._fed)

    @property
    def idle(self) -> bool:
        """Nothing fed, nothing running, nothing to collect."""
        return not (self._fed or self._open or self._ended)

    def _admit(self) -> bool:
        while self._fed and (not self._held or self._held + self._fed[0].decoding.n <= self.slots):
            request = self._fed[0]
            self._open[request.id] = (request, [])
            self._fed.popleft()  # after `_open` has it: `idle` must not see the row nowhere
            self._held += request.decoding.n
            self.engine.submit(request)
        if not self._fed and self._held < self.slots:
            self.starved += 1
        return bool(self._open)

    def _take(self, events: Sequence[Event]) -> None:
        ended = False
        for event in events:
            match event:
                case TokenEvent():
                    self.tokens += 1
                case OutcomeEvent():
                    ended |= self._collect(event)
        if ended:
            self._wake()

    def _collect(self, outcome: OutcomeEvent) -> bool:
        """True when this was the last sample of its row."""
        id = outcome.row.request
        if id not in self._open:
            return False
        request, samples = self._open[id]
        samples.append(outcome)
        self._held -= 1
        if len(samples) < request.decoding.n:
            return False
        samples.sort(key=lambda one: one.row.sample)
        self._ended.append((id, samples))
        del self._open[id]
        return True
