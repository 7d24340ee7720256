"""The ledger of a job as an actor: a lock, two threads and a way out around `raydecode.corpus.ledger.Ledger`.

Every decision is the core's. Here: messages take the lock, a feeder thread offers it blocks (pulling outside the
lock, so that a slow read delays no commit), a keeper thread ticks it every second, and the process ends when the log
says that another run took over, or when the driver is gone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from raydecode.corpus.inputs import Corpus
from raydecode.corpus.intervals import Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.messages import Cause, Committed, Kill, Limits, Orders, Progress, Refused, Reply
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import PartMeta, State
from raydecode.corpus.storage import is_full, open_storage
from raydecode.errors import JobError

TICK_S = 1.0
ASK_S = 1.0
LOOK_S = 1.0  # the lock is held for milliseconds, unless its holder waits for the storage
DEFAULT = Limits()
LAST_WORDS_S = 1.0  # answers on their way still leave the process
Call = Callable[..., Any]
"""`call(method, *arguments)` of a ledger, answer included."""


@dataclass(frozen=True, slots=True)
class Block:
    """What the reading side delivers. ref: turns into the table of all rows of `units`; size_bytes: of that table."""

    ref: Any
    units: Sequence[Span]
    size_bytes: int = 0


Blocks = Callable[[Corpus, Sequence[Span]], Iterator[Block]]


@dataclass(frozen=True, slots=True)
class Opened:
    """The output is ours. rows: committed before; units: what is left."""

    attempt: int
    rows: int
    units: int


@dataclass(frozen=True, slots=True)
class Look:
    """What the keeper in the driver needs every moment.

    kills:     workers to kill, once each, with the reason
    storage_s: how long the output has let one call wait; while it does, the rest is what was last known
    """

    progress: Progress
    kills: tuple[Kill, ...]
    storage_s: float = 0.0


class LedgerActor:
    """output: url of the output folder
    corpus: what the units are read from
    blocks: units -> the blocks that hold them, in any order; the job graph's reading side
    plan:   (corpus, state of the log) -> the units that are left
    exit:   ends the process; tests put another end
    """

    def __init__(
        self, output: str, corpus: Corpus, blocks: Blocks, plan: Callable[[Corpus, State], Sequence[Span]],
        limits: Limits = DEFAULT, exit: Callable[[int], None] = os._exit,
    ) -> None:  # fmt: skip
        self._storage, self._corpus, self._blocks, self._plan = open_storage(output), corpus, blocks, plan
        self._limits, self._exit = limits, exit
        self._lock, self._pulled, self._closed = threading.RLock(), threading.Event(), threading.Event()
        self._kills: list[Kill] = []
        self._ledger: Ledger | None = None
        self._began = time.time()
        self._seen: Progress | None = None
        self._writing_since: float | None = None  # monotonic; the lock's holder waits for the storage since then

    def open(
        self, job: Mapping[str, Any], schema: str, owner: Owner, *, takeover: bool = False, overwrite: bool = False
    ) -> Opened:
        """Take the output over, plan what is left, begin to read. Raises UserError and JobError of the log."""
        log = Log.open(
            self._storage, job=job, inputs=self._corpus.files, schema=schema, now=time.time, owner=owner,
            takeover=takeover, overwrite=overwrite,
        )  # fmt: skip
        # By content: a file that moved since has its old path in the log.
        logged, ours = (
            {one.number: (one.size_bytes, one.stamp) for one in files}
            for files in (log.state.inputs, self._corpus.files)
        )
        if logged != ours:
            raise JobError(f"{self._storage.url}: another run added input files just now; run the command again")
        units = self._plan(self._corpus, log.state)
        self._ledger = Ledger(log, units, time.monotonic, self._limits, self._finish)
        for target, arguments in ((self._feed, (units,)), (self._keep, (owner,))):
            threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()
        return Opened(log.attempt, log.state.rows, len(units))

    # ------------------------------------------------------------------ workers
    def next(self, worker: str, ticket: int) -> Reply:
        with self._lock:
            reply = self._core.next(worker, ticket)
        self._pulled.set()
        return reply

    def report(
        self, worker: str, started: Iterable[Span], finished: Iterable[tuple[Span, int]],
        tokens: int, waiting: int, step_s: float | None,
    ) -> Orders:  # fmt: skip
        """Rows that are about to enter slots (they may, once this returns), rows that left them with the tokens they
        made, and a sign of life."""
        ended = list(finished)
        with self._lock:
            self._core.started(worker, started)
            self._core.finished(worker, [row for row, _ in ended], [made for _, made in ended])
            return self._core.beat(worker, tokens, waiting, step_s)

    def returned(self, worker: str, rows: Iterable[Span]) -> None:
        with self._lock:
            self._core.returned(worker, rows)

    def probed(self, worker: str, group: int) -> None:
        with self._lock:
            self._core.probed(worker, group)

    def commit(self, worker: str, parts: Sequence[PartMeta]) -> Committed | Refused:
        with self._lock, self._fence():
            return self._core.commit(worker, parts)

    def leave(self, worker: str) -> None:
        with self._lock:
            self._core.leave(worker)

    # ------------------------------------------------------------------ the keeper in the driver
    def look(self) -> Look:
        """Answers even when the storage does not: whoever writes holds the lock, and may hold it for ever."""
        if not self._lock.acquire(timeout=LOOK_S if self._seen else -1):
            since = self._writing_since
            return Look(cast(Progress, self._seen), (), time.monotonic() - since if since is not None else 0.0)
        try:
            kills, self._kills = tuple(self._kills), []
            self._seen = self._core.progress()
            return Look(self._seen, kills)
        finally:
            self._lock.release()

    def drain(self, worker: str) -> None:
        with self._lock:
            self._core.drain(worker)

    def introduce(self, told: Mapping[str, Any]) -> str | None:
        """What an engine that came up says of itself; a warning, if it calls for one."""
        with self._lock, self._fence():
            return self._core.introduce(told)

    def died(self, worker: str, cause: Cause, message: str) -> None:
        with self._lock, self._fence():
            self._core.on_death(worker, cause, message)

    def start_failed(self, message: str) -> None:
        with self._lock:
            self._core.on_start_failure(message)

    def end(self, reason: str) -> None:
        """Somebody ends the job: workers commit what is finished and leave."""
        with self._lock:
            self._core.end(reason)

    def close(self) -> None:
        """Nothing will be committed any more: the next run need not wait for this one's heartbeat to grow old."""
        self._closed.set()
        with self._lock:
            self._core.log.beat(0, closed=True)

    # ------------------------------------------------------------------ threads
    def _feed(self, units: Sequence[Span]) -> None:
        failed = None
        try:
            for block in self._blocks(self._corpus, units):
                positions = sum(unit.size for unit in block.units)
                for unit in block.units:
                    if not self._until_hungry():
                        return
                    with self._lock:
                        self._core.offer(block.ref, unit, block.size_bytes * unit.size // max(1, positions))
        except Exception as error:  # workers read the rest themselves
            failed = f"{type(error).__name__}: {error}"
            print(f"the reading side failed, the actors read on: {failed}", file=sys.stderr)
        with self._lock:
            self._core.end_of_input(failed)

    def _until_hungry(self) -> bool:
        """False when the job has ended."""
        while True:
            self._pulled.clear()
            with self._lock:
                if self._core.hungry():
                    return True
                if self._core.progress().ended:
                    return False
            self._pulled.wait(TICK_S)

    def _keep(self, owner: Owner) -> None:
        while not self._closed.wait(TICK_S):
            if owner.alive() is False:
                self._exit(1)
                return
            try:
                with self._lock, self._fence():
                    orders = self._core.tick()
                    self._kills += [one for one in orders if isinstance(one, Kill)]
            except Fenced:
                return
            except Exception as error:  # whatever it was: without this thread nobody would notice a stall
                print(f"heartbeat: {error}", file=sys.stderr)

    @contextlib.contextmanager
    def _fence(self) -> Iterator[None]:
        """Around what writes the log. Whoever finds it taken over says so, gives the answers on their way a moment,
        and ends the process; a log that cannot be written ends the job with the cause."""
        self._writing_since = time.monotonic()
        try:
            yield
        except Fenced as error:
            print(error, file=sys.stderr)
            timer = threading.Timer(LAST_WORDS_S, self._exit, (1,))
            timer.daemon = True
            timer.start()
            raise
        except OSError as error:
            raise disk_error(self._storage.url, error) from error
        finally:
            self._writing_since = None

    def _finish(self) -> dict[str, Any]:
        return {"seconds": round(time.time() - self._began, 3), "ended_at": time.time()}

    @property
    def _core(self) -> Ledger:
        assert self._ledger is not None, "open() comes first"
        return self._ledger


class Remote:
    """A ledger behind an actor handle, as workers and driver call it: method by name, answer included.

    meanwhile: called now and then until an answer is there; raises to give up
    Raises what the method raised, as it was; RayActorError when there is no ledger any more.
    """

    def __init__(self, handle: Any, meanwhile: Callable[[], None] | None = None) -> None:
        self.handle, self._meanwhile = handle, meanwhile

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        import ray

        try:
            answer = getattr(self.handle, method).remote(*arguments, **options)
            while not ray.wait([answer], timeout=ASK_S)[0]:
                if self._meanwhile is not None:
                    self._meanwhile()
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def disk_error(url: str, error: OSError) -> JobError:
    """The output cannot be written any more: nobody else could either."""
    what = "the disk is full" if is_full(error) else str(error)
    return JobError(f"{url}: {what}. What is committed stays; make room and run the same command again to go on")
