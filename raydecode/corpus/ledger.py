"""Who runs which rows: leases, blame, watchdog. A pure state machine over a clock, a `Log` and offered blocks.

The Ray actor of the same name is a thin skin: every decision lies here, every method is synchronous and takes and
returns plain values. One thread at a time.

    feeder   while ledger.hungry(): ledger.offer(ref, unit)   ...   ledger.end_of_input()
    worker   next -> Lease | Suspects | Wait | Stop;  started, finished (rows enter, leave a slot), beat, commit(parts)
    keeper   introduce (an engine is up), on_death, on_start_failure;  tick -> Kill | End

Laws (simulated over thousands of schedules in tests/corpus/test_ledger.py):
exact cover at the end; no row is with two living workers; whatever the feeder fails to deliver is leased as a unit
without a block; blame falls on rows in slots alone.

Here: what each message does, in what order. Which position is where: places.py. Who killed an engine: hunt.py. What is
known of a worker, and when it is overdue: workers.py. Why a job ends early: endings.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raydecode.corpus.endings import Endings
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
from raydecode.corpus.places import Loan, Places
from raydecode.corpus.provenance import difference, is_known, provenance
from raydecode.corpus.records import PartMeta
from raydecode.corpus.rows import RowFault
from raydecode.corpus.workers import Worker, spare_rows

_WAIT_S = 0.05
_ASK_AGAIN_S = 5.0  # a worker that was asked to give rows back has this long to answer


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
        state = log.state
        self._hunt = Hunt(state.hunt, state.condemned, state.tries)
        self._places = Places(planned, state.done, self._hunt.held())
        self._endings = Endings(self._limits)
        self._workers: dict[str, Worker] = {}
        self._gone: set[str] = set()
        self._committed: set[str] = set()
        self._starving: set[str] = set()
        self._lease = 0
        self._generated = 0
        self._estimate = Estimate(self._limits.max_tokens)
        self._beat_at = float("-inf")
        self._active_at = clock()
        self._ended: str | None = None

    # the feeder

    def hungry(self) -> bool:
        """More blocks are wanted."""
        return self._ended is None and self._places.hungry(self._limits, len(self._workers))

    def offer(self, ref: object, unit: Span, size_bytes: int = 0) -> None:
        """A block that holds the rows of `unit`, which take `size_bytes` of it. Rows that are done, held or already
        somewhere are left out."""
        self._active_at = self._clock()
        self._places.offer(ref, unit, size_bytes)

    def end_of_input(self, failed: str | None = None) -> None:
        """The feeder is through, or it broke (`failed`): workers read what is missing themselves."""
        self._places.end_of_input()

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
        self._places.give_back(me, rows, suspects, self._workers.get(me.asked_for))

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
        fault = self._places.refusal(me, parts, self.log.attempt)
        if fault:
            self._places.release(me, parts)
            me.keep(me.assigned.covers)
            return Refused(fault)
        try:
            self.log.commit(parts)
        except Exception as error:
            self._end("fenced" if isinstance(error, Fenced) else f"the output cannot be written: {error}")
            raise
        self._committed.update(part.name for part in parts)
        self._settle(worker, me, parts)
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
            self._end(self._endings.barren_death(f"{worker}: {message or cause}"))
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

    def introduce(self, told: Mapping[str, Any]) -> str | None:
        """An engine is up and says what it is; it gets rows afterwards. Returns a warning when the output's rows are
        now made under different promises."""
        one = provenance(told)
        if self._ended is not None or is_known(self.log.state.engines, one):
            return None
        self._append(lambda: self.log.introduce(one))
        return difference(self.log.state.engines)

    def on_start_failure(self, message: str) -> None:
        """A worker's constructor failed. Two in a row end the job: a third would fail as well."""
        self._end(self._endings.start_failure(message))

    def end(self, reason: str) -> None:
        """Somebody ends the job: the next answers tell the workers to commit what is finished and to leave. What they
        had not finished is run by the next attempt, if there is one."""
        self._end(reason)

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
        watched = any(me.slots and not me.killed for me in self._workers.values())  # the watchdog above sees to them
        if not out and not watched:
            self._end(self._endings.silence(now - self._active_at, self._places, self._workers))
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
            positions_done=self._places.total - self._places.left,
            positions_planned=self._places.total,
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
        if self._places.left == 0:
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
            me.assigned.add(row)
            return self._lease_of(Loan(None, row, (row,)), fault)
        group = self._hunt.take(worker)
        if group is not None:
            for row in group.rows:
                me.assigned.add(row)
            tries = max(self._hunt.tries.get(row, 1) for row in group.rows)
            return Suspects(group.number, tuple(group.rows), group.alone, tries)
        loan = self._places.lend(me)
        if loan is not None:
            return self._lease_of(loan)
        if self._places.input_done:
            self._starving.add(worker)
        return Wait(_WAIT_S)

    def _lease_of(self, loan: Loan, fault: RowFault | None = None) -> Lease:
        self._lease += 1
        return Lease(self._lease, loan.unit, loan.ref, loan.todo, fault)

    def _ask_back(self, worker: str, me: Worker, now: float) -> int:
        """At the tail, rows that wait at one worker for another that has none: how many, or 0."""
        if me.asked_at is not None and now - me.asked_at < _ASK_AGAIN_S:
            return 0
        if not self._places.idle or self._hunt.of(worker) is not None:
            return 0
        idle = {n: self._workers[n] for n in sorted(self._starving - {worker}) if self._hunt.of(n) is None}
        give, receiver = spare_rows(me, idle, peak=max(one.peak for one in self._workers.values()))
        if give:
            me.asked_at, me.asked_for = now, receiver
        return give

    def _settle(self, worker: str, me: Worker, parts: Sequence[PartMeta]) -> None:
        self._places.settle(me, parts)
        done = self.log.state.done
        me.keep(lambda row: not done.covers(row))
        me.condemned = {row for row in me.condemned if not done.covers(row)}
        self._hunt.committed(worker, done)
        self._endings.committed()
        self._active_at = me.progress_at = self._clock()
        if self._places.left == 0:
            self._complete()
        elif self.log.state.weight >= self._limits.error_rows:
            self._end(self._endings.too_many_errors(self.log.state))

    def _bury(self, worker: str, me: Worker) -> None:
        """The worker is no more: what it held goes to the pool, except what the hunt holds."""
        del self._workers[worker]
        self._gone.add(worker)
        self._starving.discard(worker)
        self._hunt.condemned.extend(sorted(me.condemned))
        self._places.bury(me, self._hunt.held())

    def _condemned(self) -> list[Span]:
        return [*self._hunt.condemned, *(row for me in self._workers.values() for row in me.condemned)]

    def _complete(self) -> None:
        self._end(self._endings.too_many_errors(self.log.state))
        if self._ended is None:
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

    def _end(self, reason: str | None) -> None:
        self._ended = self._ended or reason

    def _eta(self) -> Eta | None:
        now, held = self._clock(), Cover()
        ages: list[int] = []
        for me in self._workers.values():
            ages += me.ages(now)
            held.update(Cover([*me.slots, *me.ready]))
        seen = self.log.state.rows + sum(len(me.slots) + len(me.ready) for me in self._workers.values())
        per_row = (self.log.state.done.size + held.size) / max(seen, 1)  # bytes of a line; 1 in Parquet
        return self._estimate.left(max(0, self._places.left - held.size) / max(per_row, 1.0), ages)

    def _in_flight(self) -> int:
        return sum(len(me.slots) + len(me.ready) for me in self._workers.values())

    def _worker(self, name: str) -> Worker:
        me = self._workers.get(name)
        if me is None:
            me = self._workers[name] = Worker(progress_at=self._clock())
            self._endings.came()
            self._active_at = self._clock()
        return me

    def _alive(self, name: str) -> Worker | None:
        """The worker, or None when it is gone (its late messages count for nothing)."""
        return self._workers.get(name)
