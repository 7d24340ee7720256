"""Finds batches that are not ended and runs them, some at a time, the oldest first.

One runner per service is meant; two do no harm, for a commit log has one writer (the second is told that another run
is writing, and looks again later). What a killed server left goes on at the next start, on the same host at once,
elsewhere when its heartbeat is 30 s old.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from raydecode.errors import JobError, RaydecodeError, UserError
from serve_app.batches.files import FileStore, Unwritable
from serve_app.batches.records import Batch, BatchStore
from serve_app.batches.run import AnswerOf, Run, Settings
from serve_app.failures import note

POLL_S = 2.0  # looks, besides those that `poke` asks for
AGAIN_S = 10.0  # before a batch that could not go on is tried again
TRIES = 5  # of a batch whose run fails for a reason that nobody foresaw
SWEEP_S = 600.0

DEFAULT = Settings()

log = logging.getLogger("raydecode.serve")


class Runner:
    """answer: answers a line, in the event loop `loop`;  running: batches at once;  told: what is left, by status"""

    def __init__(
        self, files: FileStore, batches: BatchStore, answer: AnswerOf, loop: asyncio.AbstractEventLoop, *,
        running: int = 2, settings: Settings = DEFAULT, clock: Callable[[], float] = time.time,
        told: Callable[[dict[str, int]], None] = lambda by_status: None,
    ) -> None:  # fmt: skip
        self._files, self._batches, self._answer, self._loop = files, batches, answer, loop
        self._running, self._settings, self._clock, self._told = running, settings, clock, told
        self._runs: dict[str, tuple[Run, threading.Thread]] = {}
        self._again: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._news, self._leaving = threading.Event(), threading.Event()
        self._swept = 0.0
        self._thread = threading.Thread(target=self._watch, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        """Something was created or cancelled: look now."""
        self._news.set()

    def stop(self, patience_s: float = 20.0) -> None:
        """Commit what is finished and leave; the next start goes on. Call it while the loop still runs."""
        self._leaving.set()
        self._news.set()
        until = time.monotonic() + patience_s
        if self._thread.ident is not None:
            self._thread.join(patience_s)
        for run, _ in list(self._runs.values()):
            run.end("shutdown")
        for _, thread in list(self._runs.values()):
            thread.join(max(0.0, until - time.monotonic()))

    def _watch(self) -> None:
        while not self._leaving.is_set():
            self._news.clear()
            try:
                self._look()
                self._sweep()
            except (RaydecodeError, OSError) as error:  # a storage that is away for a moment
                log.warning("batches cannot be looked through: %s: %s", type(error).__name__, error)
            except Exception as error:
                note(error, "batches")
            self._news.wait(POLL_S)

    def _look(self) -> None:
        self._runs = {id: one for id, one in self._runs.items() if one[1].is_alive()}
        left = [batch for batch in reversed(self._batches.all()) if batch.ended is None]
        self._told(dict(Counter(batch.status for batch in left)))
        for batch in left:
            if self._leaving.is_set():
                return
            why = self._why(batch)
            if batch.id in self._runs:
                if why:
                    self._runs[batch.id][0].end(why)
            elif (why or len(self._runs) < self._running) and time.monotonic() >= self._again.get(batch.id, 0.0):
                self._begin(batch, why)

    def _why(self, batch: Batch) -> str | None:
        """Why the batch shall end now."""
        if batch.finalizing is not None:
            return None
        if batch.cancelling is not None:
            return "cancelled"
        return "expired" if self._clock() >= batch.expires_at else None

    def _begin(self, batch: Batch, why: str | None) -> None:
        run = Run(batch, self._files, self._batches, self._answer, self._loop, self._settings)
        if why:
            run.end(why)
        thread = threading.Thread(target=self._guarded, args=(run,), name=batch.id, daemon=True)
        self._runs[batch.id] = run, thread
        thread.start()

    def _guarded(self, run: Run) -> None:
        id = run.batch.id
        try:
            run()
            self._failures.pop(id, None)
        except (UserError, JobError, Unwritable, OSError) as error:
            # Another server has it, or the storage takes nothing: both may be over the next time.
            log.warning("%s waits, tried again in %.0f s: %s", id, AGAIN_S, error)
            self._again[id] = time.monotonic() + AGAIN_S
        except Exception as error:
            self._failures[id] = self._failures.get(id, 0) + 1
            log.error("%s failed, %d of %d times", id, self._failures[id], TRIES)
            note(error, id)  # without its message, which may quote a prompt
            self._again[id] = time.monotonic() + AGAIN_S
            if self._failures[id] >= TRIES:
                said = {"code": "internal_error", "message": f"{type(error).__name__}", "line": None, "param": None}
                self._batches.put(id, "ended", status="failed", errors=[said])
        finally:
            self.poke()

    def _sweep(self) -> None:
        """Delete what has expired and is not read by a batch."""
        if time.monotonic() - self._swept < SWEEP_S and self._swept:
            return
        self._swept = time.monotonic()
        used = {one.created["input_file_id"] for one in self._batches.all() if one.ended is None}
        for id in self._files.expired():
            if id not in used:
                self._files.delete(id)
