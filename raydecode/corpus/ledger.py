"""Who runs which rows: leases, blame, watchdog. A pure state machine over a clock, a `Log` and offered blocks.

The Ray actor of the same name is a thin skin: every decision lies here, every method is synchronous and takes and
returns plain values. One thread at a time.

    feeder   while ledger.hungry(): ledger.offer(ref, unit)   ...   ledger.end_of_input()
    worker   next -> Lease | Suspects | Wait | Stop;  started, finished (rows enter, leave a slot), beat, commit(parts)
    keeper   on_death, on_start_failure;  tick -> Kill | End

Laws (simulated over thousands of schedules in tests/corpus/test_ledger.py):
exact cover at the end; no row is with two living workers; whatever the feeder fails to deliver is leased as a unit
without a block (`planned` is the truth, blocks are transport); blame falls on rows in slots alone.

A position is in exactly one place: not yet offered, offered, in the pool, with a worker, held by the hunt, or done.
`_taken` is the union of all but the first.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raydecode.corpus.eta import Estimate, Eta
from raydecode.corpus.hunt import Hunt
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.log import HEARTBEAT_S, Fenced, Log
from raydecode.corpus.messages import (
    BLAMING,
    Cause,
    Committed,
    End,
    Kill,
    Lease,
    Limits,
    Orders,
    Progress,
    Refused,
    Reply,
    Stop,
    Suspects,
    Wait,
)
from raydecode.corpus.records import PartMeta
from raydecode.corpus.rows import RowFault
from raydecode.corpus.workers import Worker, spare_rows

__all__ = [
    "Committed",
    "End",
    "Kill",
    "Lease",
    "Ledger",
    "Limits",
    "Orders",
    "Progress",
    "Refused",
    "Reply",
    "Stop",
    "Suspects",
    "Wait",
]

_WAIT_S = 0.05
_ASK_AGAIN_S = 5.0  # a worker that was asked to give rows back has this long to answer


@dataclass(frozen=True, slots=True)
class _Offer:
    ref: object
    unit: Span
    todo: tuple[Span, ...]
    size_bytes: int


class Ledger:
    """See the module.

    planned: the units of the job that were not covered when it started, each at most one block
    clock:   monotonic seconds
    finish:  called once when all is done; its value becomes the `finish` record's summary
    """

    def __init__(
        self,
        log: Log,
        planned: Sequence[Span],
        clock: Callable[[], float],
        limits: Limits | None = None,
        finish: Callable[[], dict[str, object]] = dict,
    ) -> None:
        self.log, self._clock, self._limits, self._finish = log, clock, limits or Limits(), finish
        self._planned, self._all = list(planned), Cover(planned)
        state = log.state
        self._hunt = Hunt(state.hunt, state.condemned, state.tries)
        self._taken = state.done.copy()
        self._taken.update(self._hunt.held())
        self._left = self._all.subtract(state.done).size
        self._total = self._left
        self._offered: deque[_Offer] = deque()
        self._pool: deque[Span] = deque()
        self._input_done = False
        self._workers: dict[str, Worker] = {}
        self._gone: set[str] = set()
        self._committed: set[str] = set()
        self._starving: set[str] = set()
        self._lease = 0
        self._generated = 0
        self._estimate = Estimate(self._limits.max_tokens)
        self._barren: list[str] = []
        self._start_failures: list[str] = []
        self._beat_at = float("-inf")
        self._active_at = clock()
        self._ended: str | None = None

    # the feeder

    def hungry(self) -> bool:
        """More blocks are wanted: their number and their bytes are bounded, but one there may always be."""
        if self._input_done or self._ended is not None:
            return False
        few = len(self._offered) < max(self._limits.queue, len(self._workers))
        return not self._offered or (few and sum(one.size_bytes for one in self._offered) < self._limits.queue_bytes)

    def offer(self, ref: object, unit: Span, size_bytes: int = 0) -> None:
        """A block that holds the rows of `unit`, which take `size_bytes` of it. Rows that are done, held or already
        somewhere are left out."""
        todo = tuple(self._all.intersect(Cover([unit])).subtract(self._taken).spans())
        self._active_at = self._clock()
        if todo:
            self._taken.update(Cover(todo))
            self._offered.append(_Offer(ref, unit, todo, size_bytes))

    def end_of_input(self, failed: str | None = None) -> None:
        """The feeder is through, or it broke (`failed`): workers read what is missing themselves."""
        if not self._input_done:
            self._input_done = True
            for unit in self._planned:
                for span in self._taken.missing(unit):
                    self._pool.append(span)
                    self._taken.add(span)

    # workers

    def next(self, worker: str, ticket: int) -> Reply:
        """What to do now. `ticket` counts this worker's calls: a message that comes twice gets one answer twice."""
        if worker in self._gone:
            return Stop("dead")
        if self._ended is not None:
            return Stop(self._ended)
        me = self._worker(worker)
        if ticket == me.ticket and me.reply is not None:
            return me.reply
        if ticket < me.ticket:
            return Wait(_WAIT_S)  # a late copy; nobody listens to this answer
        me.ticket, me.reply = ticket, self._decide(worker, me)
        if isinstance(me.reply, Lease | Suspects):
            self._active_at = me.progress_at = self._clock()
            self._starving.discard(worker)
        return me.reply

    def started(self, worker: str, rows: Iterable[Span]) -> None:
        """Rows enter slots. Wait for the answer before the engine steps: an engine that dies with rows in slots that
        the ledger does not know is blamed on nobody, and three such deaths end the job."""
        me = self._alive(worker)
        if me is not None:
            now = self._clock()
            new = [row for row in rows if me.assigned.covers(row) and row not in me.ready | me.slots.keys()]
            if new:  # a report with nothing in it is a living process, not a living engine
                me.progress_at = now
            me.slots |= dict.fromkeys(new, now)
            me.peak = max(me.peak, len(me.slots))

    def finished(self, worker: str, rows: Iterable[Span], tokens: Iterable[int] = ()) -> None:
        """Rows left their slots and wait in the worker's buffer. tokens: the length of each, for the ETA."""
        me = self._alive(worker)
        if me is not None:
            rows = [row for row in rows if me.assigned.covers(row)]
            for row in rows:
                me.slots.pop(row, None)
            me.ready.update(rows)
            for length in tokens:
                self._estimate.finished(length)
            if rows:
                me.progress_at = self._clock()

    def beat(self, worker: str, tokens: int, waiting: int, step_s: float | None = None) -> Orders:
        """Every second or so. tokens: generated since the worker's start; waiting: rows it holds that have not
        started; step_s: duration of its last engine step."""
        me = self._alive(worker)
        if me is None:
            return Orders(stop="dead")
        now = self._clock()
        if tokens > me.tokens:
            self._generated += tokens - me.tokens
            me.tokens, me.progress_at, self._active_at = tokens, now, now
        if step_s is not None:
            me.step_s.append(step_s)
        me.waiting = waiting
        stop = self._ended or ("drain" if me.draining else None)
        return Orders(self._ask_back(worker, me, now), stop)

    def returned(self, worker: str, rows: Iterable[Span]) -> None:
        """Rows that the worker gives back, none of them started. Also call it with no rows to decline."""
        me = self._alive(worker)
        if me is None:
            return
        me.asked_at = None
        group = self._hunt.of(worker)
        suspects = set(group.rows) if group else set()
        back = sorted(
            r for r in rows if me.assigned.covers(r) and r not in me.slots and r not in me.ready and r not in suspects
        )
        for row in back:
            me.assigned.remove(row)
        me.waiting = max(0, me.waiting - len(back))
        receiver = self._workers.get(me.asked_for)
        (self._pool if receiver is None else receiver.gifts).extend(Cover(back).spans())

    def probed(self, worker: str, group: int) -> None:
        """The known good prompt ran through on this engine, right before the suspect."""
        mine = self._hunt.of(worker)
        if self._alive(worker) is not None and mine is not None and mine.number == group:
            mine.probed = True

    def commit(self, worker: str, parts: Sequence[PartMeta]) -> Committed | Refused:
        """Make parts of this worker done and visible. All or none. Raises Fenced, or OSError when the storage
        fails: both end the job, and the worker must not go on."""
        if parts and all(part.name in self._committed for part in parts):
            return Committed()
        me = self._alive(worker)
        if me is None:
            return Refused(f"worker {worker} is not of this run or was given up; its rows run elsewhere")
        whole = Cover()
        for part in parts:
            fault = self._fault(me, part, whole)
            if fault:
                self._release(me, parts)
                return Refused(fault)
            whole.update(part.cover)
        try:
            self.log.commit(parts)
        except Exception as error:
            self._end("fenced" if isinstance(error, Fenced) else f"the output cannot be written: {error}")
            raise
        self._committed.update(part.name for part in parts)
        self._settle(worker, me, whole)
        return Committed()

    def leave(self, worker: str) -> None:
        """The worker is going, in peace. What it still holds is leased again."""
        me = self._alive(worker)
        if me is not None:
            self._hunt.put_back(worker)
            self._bury(worker, me)

    # the keeper

    def drain(self, worker: str) -> None:
        """The next answers tell the worker to finish what runs and to leave (scale down, node going away)."""
        me = self._alive(worker)
        if me is not None:
            me.draining = True

    def on_death(self, worker: str, cause: Cause, message: str = "") -> None:
        """The worker's process is gone for certain. Rows in its slots are suspects when the cause blames."""
        if worker in self._gone:
            return
        me = self._worker(worker)
        rerun = len(me.slots) + len(me.ready)
        if cause not in BLAMING:
            self._hunt.put_back(worker)
        elif self._hunt.died(worker, me.slots.keys() - me.condemned):
            self._count_barren(f"{worker}: {message or cause}")
        self._bury(worker, me)
        self._active_at = self._clock()
        self._append(
            lambda: self.log.blame(
                self._hunt.groups(),
                self._condemned(),
                self._hunt.tries,
                rerun=rerun,
                worker=worker,
                cause=f"{cause}: {message}" if message else cause,
            )
        )

    def on_start_failure(self, message: str) -> None:
        """A worker's constructor failed. Two in a row end the job: a third would fail as well."""
        self._start_failures.append(message)
        if len(self._start_failures) >= self._limits.start_failures:
            self._end(f"workers do not start: {message}")

    def tick(self) -> list[Kill | End]:
        """Call every second: heartbeat, watchdog, and the end, if there is one."""
        now = self._clock()
        if self._ended is not None:
            return [End(self._ended)]
        self._estimate.mark(now, self._generated)
        if now - self._beat_at >= HEARTBEAT_S:
            self._beat_at = now
            self._heartbeat()
        late = ((name, me, me.overdue(now, self._limits)) for name, me in self._workers.items())
        out: list[Kill | End] = [me.kill(name, reason) for name, me, reason in late if reason]
        quiet = now - self._active_at
        started = any(me.assigned for me in self._workers.values()) or (self._input_done and self._workers)
        watched = any(me.slots and not me.killed for me in self._workers.values())  # the watchdog above sees to them
        if not out and not watched and quiet > (self._limits.idle_s if started else self._limits.start_s):
            self._end(self._stalled(quiet))
        return out if self._ended is None else [*out, End(self._ended)]

    @property
    def ended(self) -> str | None:
        """ "finished", the cause of the end, or None while the job runs."""
        return self._ended

    def progress(self) -> Progress:
        state = self.log.state
        return Progress(
            rows=state.rows,
            errors=state.errors,
            tokens=state.tokens,
            parts=state.parts,
            rows_rerun=state.rerun,
            deaths=state.deaths,
            suspects=self._hunt.size,
            positions_done=self._total - self._left,
            positions_planned=self._total,
            workers=len(self._workers),
            in_flight=self._in_flight(),
            ended=self._ended,
            ready=sum(len(me.ready) for me in self._workers.values()),
            ready_positions=sum(row.size for me in self._workers.values() for row in me.ready),
            generated=self._generated,
            eta=self._eta(),
        )

    # decisions

    def _decide(self, worker: str, me: Worker) -> Reply:
        if self._left == 0:
            self._complete()
            return Stop(self._ended or "finished")
        if me.draining:
            return Stop("drain")
        if self._hunt.of(worker) is not None:
            return Wait(_WAIT_S)  # its group first
        if self._hunt.condemned:
            row = self._hunt.condemned.popleft()
            me.condemned.add(row)
            tries = self._hunt.tries.get(row, 1)
            fault = RowFault(
                "engine", "EngineDeath", f"the engine died {tries} times with this row, at last with it alone", tries
            )
            return self._grant(me, None, row, (row,), fault)
        group = self._hunt.take(worker)
        if group is not None:
            for row in group.rows:
                me.assigned.add(row)
            tries = max(self._hunt.tries.get(row, 1) for row in group.rows)
            return Suspects(group.number, tuple(group.rows), group.alone, tries)
        if me.gifts or self._pool:
            span = (me.gifts or self._pool).popleft()
            return self._grant(me, None, span, (span,))
        if self._offered:
            offer = self._offered.popleft()
            return self._grant(me, offer.ref, offer.unit, offer.todo)
        if self._input_done:
            self._starving.add(worker)
        return Wait(_WAIT_S)

    def _grant(
        self, me: Worker, ref: object, unit: Span, todo: tuple[Span, ...], fault: RowFault | None = None
    ) -> Lease:
        for span in todo:
            me.assigned.add(span)
        self._lease += 1
        return Lease(self._lease, unit, ref, todo, fault)

    def _ask_back(self, worker: str, me: Worker, now: float) -> int:
        """At the tail, rows that wait at one worker for another that has none: how many, or 0."""
        if me.asked_at is not None and now - me.asked_at < _ASK_AGAIN_S:
            return 0
        if self._pool or self._offered or not self._input_done or self._hunt.of(worker) is not None:
            return 0
        idle = {n: self._workers[n] for n in sorted(self._starving - {worker}) if self._hunt.of(n) is None}
        give, receiver = spare_rows(me, idle, peak=max(one.peak for one in self._workers.values()))
        if give:
            me.asked_at, me.asked_for = now, receiver
        return give

    def _fault(self, me: Worker, part: PartMeta, before: Cover) -> str | None:
        """Why a part may not be committed."""
        if part.cover.intersect(before):
            return f"part {part.name} covers rows of another part in the same commit"
        foreign = part.cover.subtract(me.assigned)
        if foreign:
            return f"part {part.name} covers rows that are not leased to this worker: {foreign.spans()[:3]}"
        if part.attempt != self.log.attempt:
            return f"part {part.name} is of attempt {part.attempt}, this is {self.log.attempt}"
        return None

    def _settle(self, worker: str, me: Worker, cover: Cover) -> None:
        for span in cover.spans():
            me.assigned.remove(span)
        self._left -= cover.size
        done = self.log.state.done
        me.slots = {row: at for row, at in me.slots.items() if not done.covers(row)}
        me.ready = {row for row in me.ready if not done.covers(row)}
        me.condemned = {row for row in me.condemned if not done.covers(row)}
        self._hunt.committed(worker, done)
        self._barren.clear()
        self._active_at = me.progress_at = self._clock()
        if self._left == 0:
            self._complete()
        elif self.log.state.weight >= self._limits.error_rows:
            self._check_errors()

    def _release(self, me: Worker, parts: Sequence[PartMeta]) -> None:
        """A refused commit: what the worker really had of it goes back to the pool."""
        for part in parts:
            for span in part.cover.intersect(me.assigned).spans():
                me.assigned.remove(span)
                self._pool.append(span)
        me.slots = {row: at for row, at in me.slots.items() if me.assigned.covers(row)}
        me.ready = {row for row in me.ready if me.assigned.covers(row)}

    def _bury(self, worker: str, me: Worker) -> None:
        """The worker is no more: what it held goes to the pool, except what the hunt holds."""
        del self._workers[worker]
        self._gone.add(worker)
        self._starving.discard(worker)
        self._hunt.condemned.extend(sorted(me.condemned))
        back = me.assigned.subtract(self._hunt.held())
        self._pool.extend([*back.spans(), *me.gifts])

    def _condemned(self) -> list[Span]:
        return [*self._hunt.condemned, *(row for me in self._workers.values() for row in me.condemned)]

    def _count_barren(self, what: str) -> None:
        self._barren.append(what)
        if len(self._barren) >= self._limits.barren_deaths:
            self._end(
                f"{len(self._barren)} workers died without committing a row in between; the last: {self._barren[-1]}"
            )

    def _check_errors(self) -> bool:
        state, limit = self.log.state, self._limits.max_error_rate
        if limit is None or state.errors == 0 or state.errors / state.weight <= limit:
            return True
        self._end(
            f"{state.errors} of {state.weight} rows failed ({state.errors / state.weight:.1%}), max_error_rate allows "
            f"{limit:.1%}: look at the `error` column; what is committed stays, a higher limit goes on"
        )
        return False

    def _complete(self) -> None:
        if self._ended is None and self._check_errors():
            if self.log.state.summary is None:
                self._append(lambda: self.log.finish(self._finish()))
            self._end("finished")

    def _append(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Fenced:
            self._end("fenced")
            raise
        except Exception as error:  # an object store's client has errors of its own
            self._end(f"the output cannot be written: {error}")
            raise

    def _heartbeat(self) -> None:
        """One that fails ends nothing: it only spares people a second run by accident, and whoever takes over because
        of its age fences this run off. A storage that stays broken shows at the next commit."""
        try:
            self.log.beat(self._in_flight())
        except Fenced:
            self._end("fenced")
            raise
        except Exception as error:  # an object store's client has errors of its own
            print(f"a heartbeat could not be written: {error}", file=sys.stderr)

    def _stalled(self, quiet: float) -> str:
        waiting = [
            *self._pool,
            *(one.unit for one in self._offered),
            *(s for me in self._workers.values() for s in me.assigned.spans()),
        ]
        names = ", ".join(f"{s.input}:{s.start}-{s.stop}" for s in waiting[:5]) or (
            "the reading side delivers nothing" if not self._input_done else "none"
        )
        who = (
            ", ".join(f"{name} ({len(me.slots)} running, {me.waiting} waiting)" for name, me in self._workers.items())
            or "none"
        )
        return f"nothing happened for {quiet:.0f} s. Rows that wait (file:positions): {names}. Workers: {who}"

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason

    def _eta(self) -> Eta | None:
        now, held = self._clock(), Cover()
        ages: list[int] = []
        for me in self._workers.values():
            step = statistics.median(me.step_s) if me.step_s else 0.0
            ages += [int((now - at) / step) if step > 0 else 0 for at in me.slots.values()]
            held.update(Cover([*me.slots, *me.ready]))
        seen = self.log.state.rows + sum(len(me.slots) + len(me.ready) for me in self._workers.values())
        per_row = (self.log.state.done.size + held.size) / max(seen, 1)  # bytes of a line; 1 in Parquet
        return self._estimate.left(max(0, self._left - held.size) / max(per_row, 1.0), ages)

    def _in_flight(self) -> int:
        return sum(len(me.slots) + len(me.ready) for me in self._workers.values())

    def _worker(self, name: str) -> Worker:
        me = self._workers.get(name)
        if me is None:
            me = self._workers[name] = Worker(progress_at=self._clock())
            self._start_failures.clear()
            self._active_at = self._clock()
        return me

    def _alive(self, name: str) -> Worker | None:
        """The worker, or None when it is gone (its late messages count for nothing)."""
        return self._workers.get(name)
