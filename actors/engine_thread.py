"""An engine on a thread of its own: a step whenever something runs. What enters and where events go, subclasses say.

The thread never waits for anybody: it takes what was put there, steps, and leaves what came out.

The engine is built in that thread, too: OpenMP's thread count belongs to the thread that set it. Built elsewhere, the
torch engine would step with Ray's default of one whatever was asked, and vLLM on CPU ends the process ("Check failed:
thread_num (1 vs. 2)").
"""

from __future__ import annotations

import statistics
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from raydecode.contracts import Engine
from raydecode.events import Event


class EngineThread(ABC):
    """build: makes the engine; called in the thread, and nobody else touches what it returns

    wake: called from the thread when it has nothing to run, and when it ended (`failure`)
    """

    engine: Engine

    def __init__(self, build: Callable[[], Engine], wake: Callable[[], None]) -> None:
        self._build, self._wake = build, wake
        self._built: Future[Engine] = Future()
        self.steps = 0
        self.span: tuple[float, float] | None = None  # Unix time of the first step's begin and the last one's end
        self.failure: str | None = None
        self._durations: deque[float] = deque(maxlen=101)
        self._stepping: float | None = None  # monotonic time at which the step that runs now began
        self._leaving = False
        self._more = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="engine", daemon=True)

    def start(self) -> Engine:
        """The engine, once it is built; raises what building it raises."""
        self._thread.start()
        return self._built.result()

    def join(self, timeout_s: float = 30.0) -> None:
        """Wait for the end of a thread that was told to leave."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def leave(self) -> None:
        """The thread ends behind the step it is in; what runs is left as it is."""
        self._leaving = True
        self._more.set()

    @property
    def step_s(self) -> float | None:
        """Median of the last hundred steps."""
        return statistics.median(list(self._durations)) if self._durations else None

    @property
    def stuck_s(self) -> float:
        """How long the step that runs now has been running."""
        began = self._stepping
        return 0.0 if began is None else time.monotonic() - began

    @property
    def drafting(self) -> str | None:
        """What the engine says of the drafters that it chose; to be asked when it has nothing left to do."""
        return getattr(getattr(self, "engine", None), "drafting", None)

    # ------------------------------------------------------------------ what subclasses say, in the thread
    @abstractmethod
    def _admit(self) -> bool:
        """Give the engine what may enter now. False: nothing runs in it."""

    @abstractmethod
    def _take(self, events: Sequence[Event]) -> None:
        """What a step gave."""

    # ------------------------------------------------------------------ the thread
    def _guarded(self) -> None:
        try:
            self.engine = self._build()
        except BaseException as error:
            self._built.set_exception(error)
            return
        self._built.set_result(self.engine)
        try:
            while not self._leaving:
                self._more.clear()
                if not self._admit():
                    self._wake()
                    self._more.wait(1.0)
                elif self.engine.wait(0.1):
                    self._step()
        except BaseException:
            self.failure = traceback.format_exc()
            self._wake()

    def _step(self) -> None:
        began, self._stepping = time.time(), time.monotonic()
        events = self.engine.step()
        now, self._stepping = time.time(), None
        self._durations.append(max(0.0, now - began))
        self.steps += 1
        self.span = (self.span[0] if self.span else began, now)
        self._take(events)
