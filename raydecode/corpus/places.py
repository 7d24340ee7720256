"""Which position is where: not yet offered, offered, in the pool, with a worker, held by the hunt, or done.

    offer -> offered ─┐
    end of input ─> pool ┴─ lend ─> a worker's `assigned` ─ settle ─> done
                     ^                 │
                     └─ give_back, release, bury ─ (a gift goes to the worker it was asked for)

Law: every planned position is in exactly one place; `_taken` is the union of all but the first. What the feeder never
offers goes to the pool when its input ends: `planned` is the truth, blocks are transport.
Cost: interval arithmetic, O(log k + touched) with k holes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.messages import Limits
from raydecode.corpus.records import PartMeta
from raydecode.corpus.workers import Worker


@dataclass(frozen=True, slots=True)
class Loan:
    """Rows to be had. `ref`: the block that holds `unit`, or None; `todo`: the spans of it that are meant."""

    ref: object | None
    unit: Span
    todo: tuple[Span, ...]
    size_bytes: int = 0


class Places:
    """planned: the units of the job that were not covered when it started, each at most one block
    done:    what the log has committed;  held: what an earlier run's hunt left under suspicion
    """

    def __init__(self, planned: Sequence[Span], done: Cover, held: Cover) -> None:
        self._planned, self._all = list(planned), Cover(planned)
        self._taken = done.copy()
        self._taken.update(held)
        self.left = self._all.subtract(done).size
        self.total = self.left
        self.offered: deque[Loan] = deque()
        self.pool: deque[Span] = deque()
        self.input_done = False

    @property
    def idle(self) -> bool:
        """All input has come and none of it waits for a worker."""
        return self.input_done and not (self.pool or self.offered)

    def hungry(self, limits: Limits, workers: int) -> bool:
        """More blocks are wanted: their number and their bytes are bounded, but one there may always be."""
        if self.input_done:
            return False
        few = len(self.offered) < max(limits.queue, workers)
        return not self.offered or (few and sum(one.size_bytes for one in self.offered) < limits.queue_bytes)

    def offer(self, ref: object, unit: Span, size_bytes: int) -> None:
        """Rows that are done, held or already somewhere are left out."""
        todo = tuple(self._all.intersect(Cover([unit])).subtract(self._taken).spans())
        if todo:
            self._taken.update(Cover(todo))
            self.offered.append(Loan(ref, unit, todo, size_bytes))

    def end_of_input(self) -> None:
        """What was not offered goes to the pool, without a block."""
        if not self.input_done:
            self.input_done = True
            for unit in self._planned:
                for span in self._taken.missing(unit):
                    self.pool.append(span)
                    self._taken.add(span)

    def lend(self, me: Worker) -> Loan | None:
        """The next rows are this worker's: its gifts first, then what has no block, then a block."""
        if me.gifts or self.pool:
            span = (me.gifts or self.pool).popleft()
            loan = Loan(None, span, (span,))
        elif self.offered:
            loan = self.offered.popleft()
        else:
            return None
        for span in loan.todo:
            me.assigned.add(span)
        return loan

    def give_back(self, me: Worker, rows: Iterable[Span], suspects: Collection[Span], receiver: Worker | None) -> None:
        """Rows that `me` has not started are anybody's, or the receiver's. Others are not given back."""
        back = sorted(
            r for r in rows if me.assigned.covers(r) and r not in me.slots and r not in me.ready and r not in suspects
        )
        for row in back:
            me.assigned.remove(row)
        me.waiting = max(0, me.waiting - len(back))
        (self.pool if receiver is None else receiver.gifts).extend(Cover(back).spans())

    def refusal(self, me: Worker, parts: Sequence[PartMeta], attempt: int) -> str | None:
        """Why these parts may not be committed."""
        before = Cover()
        for part in parts:
            if part.cover.intersect(before):
                return f"part {part.name} covers rows of another part in the same commit"
            foreign = part.cover.subtract(me.assigned)
            if foreign:
                return f"part {part.name} covers rows that are not leased to this worker: {foreign.spans()[:3]}"
            if part.attempt != attempt:
                return f"part {part.name} is of attempt {part.attempt}, this is {attempt}"
            before.update(part.cover)
        return None

    def settle(self, me: Worker, parts: Sequence[PartMeta]) -> None:
        """The parts are committed: their rows are done."""
        cover = Cover(span for part in parts for span in part.cover.spans())
        for span in cover.spans():
            me.assigned.remove(span)
        self.left -= cover.size

    def release(self, me: Worker, parts: Sequence[PartMeta]) -> None:
        """A refused commit: what the worker really had of it goes back to the pool."""
        for part in parts:
            for span in part.cover.intersect(me.assigned).spans():
                me.assigned.remove(span)
                self.pool.append(span)

    def bury(self, me: Worker, held: Cover) -> None:
        """The worker is no more: what it held goes to the pool, except what the hunt holds."""
        self.pool.extend([*me.assigned.subtract(held).spans(), *me.gifts])

    def waiting(self, workers: Iterable[Worker]) -> Iterator[Span]:
        """Everything that is offered or with a worker, and not done."""
        yield from self.pool
        yield from (one.unit for one in self.offered)
        yield from (span for me in workers for span in me.assigned.spans())
