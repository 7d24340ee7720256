"""An engine on a thread of its own: rows in, outcomes out, a step whenever something runs.

The thread never waits for anybody: it takes what `feed` has put there, steps, and leaves what ended in a box. Rows
enter the engine only when it has a slot for them, so that "in a slot" is known outside (blame after a crash needs it).

The engine is built in that thread, too: OpenMP's thread count belongs to the thread that set it. Built elsewhere, the
torch engine would step with Ray's default of one whatever was asked, and vLLM on CPU ends the process ("Check failed:
thread_num (1 vs. 2)").
"""

from __future__ import annotations

import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from raydecode.contracts import Engine
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Request


class Stepper:
    """build: makes the engine; called in the stepper's thread, and nobody else touches what it returns

    wake: called from the engine's thread when outcomes lie ready or it has room and nothing to run
    """

    engine: Engine

    def __init__(self, build: Callable[[], Engine], slots: int, wake: Callable[[], None]) -> None:
        self._build, self.slots, self._wake = build, slots, wake
        self._built: Future[Engine] = Future()
        self.tokens = self.steps = 0
        self.span: tuple[float, float] | None = None  # Unix time of the first step's begin and the last one's end
        self.starved = 0  # steps begun with a free slot and nothing fed: the announcements were too few
        self.failure: str | None = None
        self._fed: deque[Request] = deque()
        self._ended: deque[tuple[str, list[OutcomeEvent]]] = deque()
        self._open: dict[str, tuple[Request, list[OutcomeEvent]]] = {}
        self._held = 0  # samples in the engine
        self._durations: deque[float] = deque(maxlen=101)
        self._more = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="engine", daemon=True)

    def start(self) -> Engine:
        """The engine, once it is built; raises what building it raises."""
        self._thread.start()
        return self._built.result()

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

    @property
    def step_s(self) -> float | None:
        """Median of the last hundred steps."""
        return statistics.median(list(self._durations)) if self._durations else None

    @property
    def drafting(self) -> str | None:
        """What the engine says of the drafters that it chose; to be asked when it has nothing left to do."""
        return getattr(getattr(self, "engine", None), "drafting", None)

    def _guarded(self) -> None:
        try:
            self.engine = self._build()
        except BaseException as error:
            self._built.set_exception(error)
            return
        self._built.set_result(self.engine)
        try:
            while True:
                self._more.clear()
                self._admit()
                if not self._open:
                    self._wake()
                    self._more.wait(1.0)
                elif self.engine.wait(0.1):
                    self._step()
        except BaseException:
            self.failure = traceback.format_exc()
            self._wake()

    def _admit(self) -> None:
        while self._fed and (not self._held or self._held + self._fed[0].decoding.n <= self.slots):
            request = self._fed[0]
            self._open[request.id] = (request, [])
            self._fed.popleft()  # after `_open` has it: `idle` must not see the row nowhere
            self._held += request.decoding.n
            self.engine.submit(request)
        if not self._fed and self._held < self.slots:
            self.starved += 1

    def _step(self) -> None:
        began = time.time()
        events = self.engine.step()
        now = time.time()
        self._durations.append(max(0.0, now - began))
        self.steps += 1
        self.span = (self.span[0] if self.span else began, now)
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
