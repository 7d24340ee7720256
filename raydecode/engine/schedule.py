"""Which rows run, what each of them is fed next, and who gives way when memory is short.

Rows are admitted in order of submission, while a slot is free and pages for all that the row has to read. A turn feeds
every running row: those that decode one tree each, those that still read a part of the prompt budget, so that a long
prompt never stalls the others. Pages that another row has read are shared; of rows with one beginning one reads it and
the others wait a turn. When pages run out, the row that came last gives its own back and reads its text anew later
(its states stay): the row that came first always advances, and a row that fits the context fits when it is alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import cast

from raydecode.engine.lane import Chunk, Lane, SourceLane
from raydecode.engine.rows import Row
from raydecode.tree import TokenTree

TOLD = 128
"""Most prompt tokens per turn, over all rows, whose logits are kept for drafters: 25 MB at a vocabulary of 49,152."""


class Schedule:
    """chunk: most prompt tokens fed per turn, over all rows. `running` is in order of arrival, `waiting` behind it."""

    def __init__(self, lane: Lane, chunk: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lane, self.chunk, self.clock = lane, chunk, clock
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._free = list(reversed(range(lane.slots)))

    @property
    def free(self) -> list[int]:
        """Slots that nobody holds."""
        return list(self._free)

    def admit(self) -> None:
        """Nobody is passed by: a row without room holds up those behind it."""
        while self.waiting and self._free:
            row = self.waiting[0]
            row.slot, row.cached = self._free[-1], 0
            if row.leader is None:
                self._adopt(row)
                if not self.lane.reserve(row.slot, row.cached, len(row.context)):
                    self.lane.release(row.slot)
                    row.slot, row.cached = -1, 0
                    return
            self._free.pop()
            if row.leader is None:
                self._read(row)
            self.running.append(self.waiting.popleft())
            row.admitted_at = row.admitted_at or self.clock()
        self.fork()

    def turn(
        self, blocked: Callable[[Row], bool], tells: Callable[[Row, int], bool] = lambda row, count: True
    ) -> tuple[list[Row], list[Chunk]]:
        """Rows that take a tree now, behind what is left of their text to read, and chunks of those that only read.

        tells: whether a drafter is to be told of so many tokens of the row's prompt, where one wants to be
        """
        budget, telling, ready, reading = self.chunk, TOLD, [], []
        begun: set[tuple[int, tuple[int, ...]]] = set()
        for row in list(self.running):
            if row.slot < 0 or row.leader or row.reason or blocked(row):
                continue
            if row.unread:
                self._adopt(row)
            if row.unread >= self.lane.page:
                beginning = row.cached, tuple(row.context[row.cached : row.cached + self.lane.page])
                if beginning in begun:
                    continue
                begun.add(beginning)
            take = min(row.unread, budget)
            told = take > 0 and row.inside.prompt and not row.preempted and tells(row, min(take, telling))
            take = min(take, telling) if told else take
            ends = take == row.unread and not told  # a tree behind a prompt that is one would be a deep one
            if not (take or ends) or not self._make_room(row, row.cached + take + ends):
                continue
            budget -= take
            if ends:
                ready.append(row)
            else:
                ids = tuple(row.context[row.cached : row.cached + take])
                chunk = Chunk(row.slot, row.cached, ids, None)
                if told:  # logits behind every token
                    telling, chunk = telling - take, Chunk(row.slot, row.cached, (), TokenTree.chain(ids))
                reading.append(chunk)
                row.cached += take
        return ready, reading

    def publish(self) -> None:
        """Tell the lane which texts are in the cache for good."""
        for row in self.running:
            if row.cached // self.lane.page > row.known and not row.reason:
                row.known = row.cached // self.lane.page
                self.lane.publish(row.slot, row.context[: row.cached])

    def fork(self) -> None:
        """Samples that waited for their leader's prompt start from its pages."""
        for row in self.running:
            if row.leader and row.leader.cached >= row.prompt_len - 1:
                self.lane.fork(row.leader.slot, row.slot, row.prompt_len - 1)
                row.cached = row.prompt_len - 1
                row.known = row.cached // self.lane.page
                row.cached_at_start = row.cached
                row.leader = None

    def preempt(self, row: Row) -> None:
        """Back to the head of the queue; nothing but memory is lost."""
        self.running.remove(row)
        self._vacate(row)
        row.preempted += 1
        self.waiting.appendleft(row)
        self._orphan(row)

    def retire(self) -> list[Row]:
        """Take out the rows that ended; their slots and pages are free."""
        ended = [row for row in [*self.waiting, *self.running] if row.reason]
        if ended:
            self.waiting = deque(row for row in self.waiting if not row.reason)
            self.running = [row for row in self.running if not row.reason]
        for row in ended:
            if row.slot >= 0:
                self._vacate(row)
            self._orphan(row)
        return ended

    def check(self) -> None:
        """Invariants, for tests: every slot is free or held by one row; every context ends with a pending token."""
        held = [row.slot for row in self.running]
        assert sorted(held + self._free) == list(range(self.lane.slots)), (held, self._free)
        assert all(row.unread >= 0 for row in self.running)
        assert all(row.slot < 0 and not row.cached for row in self.waiting)
        self.lane.check(held)

    # ------------------------------------------------------------------ one row
    def _adopt(self, row: Row) -> None:
        held = self.lane.adopt(row.slot, row.cached, row.context[:-1], row.salt)
        if not row.preempted:
            row.cached_at_start += held - row.cached
        row.cached = held
        row.known = max(row.known, held // self.lane.page)

    def _read(self, row: Row) -> None:
        """A row that no leader reads for has its source encoded."""
        if row.source:
            cast(SourceLane, self.lane).read(row.slot, row.source)

    def _make_room(self, row: Row, length: int) -> bool:
        """Pages for the row's next columns, in need those of the row that came last; False: that was the row itself."""
        while not self.lane.reserve(row.slot, row.cached, length):
            last = next(other for other in reversed(self.running) if not other.leader)
            self.preempt(last)
            if last is row:
                return False
        return True

    def _vacate(self, row: Row) -> None:
        self.lane.release(row.slot)
        self._free.append(row.slot)
        row.slot, row.cached, row.known = -1, 0, 0

    def _orphan(self, leader: Row) -> None:
        """Samples that waited for it read the prompt themselves."""
        for row in [*self.waiting, *self.running]:
            if row.leader is leader:
                row.leader = None
                if row.slot >= 0:
                    self._read(row)
