"""One engine and the rows it runs: pulls blocks, generates, writes parts, hands them to the ledger.

    run thread     next -> block -> requests -> waiting      outcomes -> part in _tmp/ -> commit
    report thread  waiting -> announced to the ledger -> engine      finished rows, heartbeat -> ledger
    engine thread  admit, step, collect (actors/stepper.py)

It pulls whenever it holds fewer waiting rows than it has slots, so rows of many blocks run and commit together, and a
straggler holds its slot and nothing else. There is no batch size and no concurrency to tune, and memory is bounded by
slots + one block waiting, one buffer of finished rows (64 MiB) and the blocks these rows came in.

A row enters the engine only after the ledger knows of it: if it kills the process, it can be blamed. So that no step
waits for that, a few rows are announced ahead; their number doubles when the engine was seen to starve.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.ledger import Call, disk_error
from actors.prepare import read_ready
from actors.rows import Requests, output_columns, samples_of
from actors.stepper import Stepper
from raydecode.config import JobConfig
from raydecode.corpus.inputs import Corpus
from raydecode.corpus.intervals import Span
from raydecode.corpus.messages import Lease, Orders, Refused, Reply, Stop, Suspects, Wait
from raydecode.corpus.parts import PartBuilder
from raydecode.corpus.records import temporary_folder
from raydecode.corpus.rows import OutputSchema, RowFault, Sample
from raydecode.corpus.storage import open_storage
from raydecode.errors import RaydecodeError
from raydecode.models.memory import peak_bytes
from raydecode.request import DecodingSpec, Request, Text

BEAT_S = 1.0
REPORT_S = 0.02  # between reports while the engine has enough to go on with: a call costs 0.3 ms of this process
PROBE = "probe"
SPARE_S = 30.0  # an actor beyond the pool's minimum that was idle for this long gives its place back


class EngineDied(RaydecodeError):
    """The engine's thread ended: the process is of no use any more."""


class GenerationActor:
    """worker: this process's name in the ledger, never used twice
    job:    `JobConfig.to_json()`
    output: url of the output folder
    prepare: what the reading side does to a block (actors/prepare.py), for blocks that are read here
    build:  makes the engine of a job
    spare:  may leave when there was nothing to do for SPARE_S, though the job goes on
    ledger: calls a method of the ledger and waits for the answer
    fetch:  turns the reference in a lease into its block; whatever it raises means: read the unit instead
    """

    def __init__(
        self,
        worker: str,
        job: Mapping[str, Any],
        corpus: Corpus,
        output: str,
        attempt: int,
        *,
        prepare: Callable[[pa.Table], pa.Table],
        build: Callable[[JobConfig], Any],
        ledger: Call,
        fetch: Callable[[Any], pa.Table],
        spare: bool = False,
    ) -> None:
        self.worker, self._job, self._corpus, self._attempt = worker, JobConfig.model_validate(job), corpus, attempt
        self._prepare, self._build, self._ledger, self._fetch, self._spare = prepare, build, ledger, fetch, spare
        self._storage = open_storage(output)
        self._requests, self._columns = Requests(self._job), output_columns(self._job)
        schema = OutputSchema(corpus.schema, self._columns, corpus.id)
        out = self._job.output
        self._parts = PartBuilder(
            self._storage, attempt, schema, time.monotonic, flush_s=out.flush_s, flush_bytes=int(out.flush_mib * 2**20)
        )
        self._slots = self._job.engine.slots
        self._waiting: deque[tuple[Span, Request]] = deque()  # not announced: may still go back
        self._inside: dict[str, tuple[Span, Request]] = {}  # announced, fed or running
        self._finished: list[tuple[Span, int]] = []  # rows and their tokens, to be reported
        self._ahead = max(1, self._slots // 8)
        self._starved = 0
        self._orders: str | None = None  # why to stop
        self._returning = 0  # rows that idle actors could have
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._wake, self._report = threading.Event(), threading.Event()
        self._leaving = False
        self._ticket = 0
        self._stepper: Stepper | None = None

    # ------------------------------------------------------------------ called from outside
    def start(self) -> dict[str, Any]:
        """Build the engine. Returns what the report says of it."""
        self._stepper = Stepper(partial(self._build, self._job), self._slots, self._woken)
        engine = self._stepper.start()
        names = ("promise", "device", "dtype", "kernels", "why", "noise", "detail")
        told = {name: getattr(engine, name, None) for name in names}
        return {"engine": getattr(engine, "name", type(engine).__name__), "pid": os.getpid()} | {
            name: str(value) for name, value in told.items() if value is not None
        }

    def run(self) -> str:
        """Work until the ledger says stop; returns its reason. A failure of the engine raises."""
        try:
            return self._work()
        except Exception:
            if self._stepper and self._stepper.failure:  # the engine is gone, whatever was seen of it first
                raise EngineDied(self._stepper.failure) from None
            raise
        finally:
            self._leaving = True
            self._report.set()

    def facts(self) -> dict[str, Any]:
        """What the engine did; asked when it has left."""
        first, last = self._engine.span or (None, None)
        return {
            "steps": self._engine.steps,
            "tokens": self._engine.tokens,
            "first_step_at": first,
            "last_step_at": last,
            "memory_bytes": peak_bytes(),
            "drafting": self._engine.drafting,
        }

    def close(self) -> None:
        """End the engine's thread, where the process goes on without this actor."""
        if self._stepper is not None:
            self._stepper.leave()

    def stacks(self) -> str:
        """What every thread is doing, for the message of a watchdog's kill."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = {names.get(ident, ident): traceback.format_stack(at) for ident, at in sys._current_frames().items()}
        return "\n".join(f"-- {name}\n{''.join(lines)}" for name, lines in frames.items())

    # ------------------------------------------------------------------ the run thread
    def _work(self) -> str:
        ask_at, nothing, busy_at = 0.0, False, time.monotonic()
        while True:
            self._check()
            self._collect()
            if self._parts.full() or (nothing and self._idle and self._parts.buffered()):
                self._commit()
            if self._orders:
                return self._leave(self._orders)
            if not (nothing and self._idle):
                busy_at = time.monotonic()
            elif self._spare and time.monotonic() - busy_at > SPARE_S:
                return self._leave("idle")
            if self._returning:
                self._give_back(self._returning)
            if self._held < self._slots and time.monotonic() >= ask_at:
                match self._next():
                    case Lease() as lease:
                        nothing = False
                        self._take(lease, self._table(lease))
                    case Suspects() as suspects:
                        nothing = False
                        self._hunt(suspects)
                    case Wait(seconds):
                        nothing, ask_at = True, time.monotonic() + seconds
                    case Stop(reason):
                        return self._leave(reason)
                continue
            if self._wake.wait(0.05):
                self._wake.clear()

    def _next(self) -> Reply:
        reply = self._ledger("next", self.worker, self._ticket)
        if self._ticket == 0:  # the ledger knows us from here on
            threading.Thread(target=self._reporting, name="report", daemon=True).start()
        self._ticket += 1
        return reply

    def _table(self, lease: Lease) -> pa.Table:
        """The unit's rows out of the lease's block; read here when there is none, or it is lost, or lacks them."""
        if lease.ref is not None:
            try:
                block = _rows_of(self._fetch(lease.ref), lease.unit)
                if block.num_rows:
                    return block
            except Exception as error:
                print(f"block {lease.unit} is lost ({type(error).__name__}); reading it again", file=sys.stderr)
        return self._read([lease.unit])

    def _read(self, units: Sequence[Span]) -> pa.Table:
        """The rows of some units (of one row each, for suspects), prepared as the reading side would."""
        blocks = [self._prepare(block) for unit in units for _, block in read_ready(self._corpus, [unit])]
        return pa.concat_tables(blocks, promote_options="permissive")

    def _take(self, lease: Lease | Suspects, block: pa.Table) -> None:
        """Put the lease's rows in the queue; rows that cannot become a request are finished."""
        for span, made in self._requests.of(self._parts.lease(lease, block)):
            match made:
                case Request():
                    with self._lock:
                        self._waiting.append((span, made))
                case RowFault():
                    self._parts.add(span, [Sample(error=made)])
        self._report.set()

    def _collect(self) -> None:
        """Outcomes of the engine become finished rows."""
        for id, outcomes in self._engine.ended():
            with self._lock:
                span, request = self._inside.pop(id)
            if id == PROBE:
                continue
            self._parts.add(span, samples_of(request, outcomes, self.worker, self._columns))
            with self._lock:
                self._finished.append((span, sum(len(one.tokens) for one in outcomes)))

    def _commit(self) -> None:
        try:
            part = self._parts.flush()
        except OSError as error:
            raise disk_error(self._storage.url, error) from error
        if part is None:
            return
        answer = self._ledger("commit", self.worker, [part])
        if isinstance(answer, Refused) and part.name is not None:
            print(f"part {part.name} refused: {answer.reason}", file=sys.stderr)
            self._storage.remove(f"{temporary_folder(part.attempt)}/{part.name}")

    def _hunt(self, suspects: Suspects) -> None:
        """Finish everything else, then run the suspects together, alone, and commit them by themselves."""
        self._give_back(len(self._waiting))
        self._drain()
        self._commit()
        if suspects.probe:
            with self._lock:
                self._inside[PROBE] = (suspects.rows[0], Request(PROBE, PROBE, Text("a"), DecodingSpec(max_tokens=1)))
                probe = self._inside[PROBE][1]
            self._engine.feed([probe])
            self._drain()
            self._ledger("probed", self.worker, suspects.group)
        self._take(suspects, self._read(suspects.rows))
        self._drain()
        self._commit()

    def _drain(self) -> None:
        """Until nothing waits and nothing runs."""
        while not self._idle:
            self._check()
            self._collect()
            if self._parts.full():
                self._commit()
            if self._wake.wait(0.05):
                self._wake.clear()
        self._collect()

    def _leave(self, reason: str) -> str:
        if reason == "drain":
            self._give_back(len(self._waiting))
            self._drain()
        if reason in ("drain", "finished") or self._parts.buffered():
            self._commit()
        self._ledger("leave", self.worker)
        return reason

    def _give_back(self, rows: int) -> None:
        """The last of the rows that nobody has announced go back to the ledger."""
        self._returning = 0
        with self._lock:
            spans = [self._waiting.pop()[0] for _ in range(min(rows, len(self._waiting)))]
        if spans:
            self._parts.drop(spans)
            self._ledger("returned", self.worker, spans)

    # ------------------------------------------------------------------ the report thread
    def _reporting(self) -> None:
        try:
            while not self._leaving:
                self._report_once()
                self._report.wait(BEAT_S)
                self._report.clear()
                if not self._waiting or self._engine.fed * 2 > self._ahead:
                    time.sleep(REPORT_S)
        except BaseException as error:
            self._failure = error
            self._wake.set()

    def _report_once(self) -> None:
        engine = self._engine
        if engine.starved > self._starved and self._waiting:
            self._starved, self._ahead = engine.starved, min(self._slots, self._ahead * 2)
        with self._lock:
            count = max(0, min(len(self._waiting), self._ahead - engine.fed))
            batch = [self._waiting.popleft() for _ in range(count)]
            self._inside.update((request.id, (span, request)) for span, request in batch)
            finished, self._finished = self._finished, []
        started = [span for span, _ in batch]
        orders: Orders = self._ledger(
            "report", self.worker, started, finished, engine.tokens, len(self._waiting), engine.step_s
        )
        engine.feed(request for _, request in batch)
        self._returning = orders.give_back
        self._orders = self._orders or orders.stop
        if batch or orders.give_back or orders.stop:
            self._wake.set()

    # ------------------------------------------------------------------ what both look at
    @property
    def _engine(self) -> Stepper:
        assert self._stepper is not None, "start() comes before run()"
        return self._stepper

    @property
    def _held(self) -> int:
        """Rows that have no slot yet."""
        return len(self._waiting) + self._engine.fed

    @property
    def _idle(self) -> bool:
        with self._lock:
            return not (self._waiting or self._inside)

    def _woken(self) -> None:
        self._wake.set()
        self._report.set()

    def _check(self) -> None:
        if self._engine.failure:
            raise EngineDied(self._engine.failure)
        if self._failure:
            raise self._failure


def _rows_of(block: pa.Table, unit: Span) -> pa.Table:
    """The rows of a block that start in a unit."""
    keys = block["_key"]
    inside = pc.and_(pc.greater_equal(keys, unit.start), pc.less(keys, unit.stop))
    return block.filter(pc.and_(inside, pc.equal(block["_input"], unit.input)))
