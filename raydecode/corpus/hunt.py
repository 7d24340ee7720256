"""Finding the row that kills engines: blame the rows in slots, run them again together, then halve.

    first death          the rows in slots become one group, run once more, together and alone
    a group's death      its rows in slots are halved; the others of the group are cleared
    a group passes       cleared (its rows are committed)
    one row, alone       it runs after a probe on the same engine; dying after a good probe is a verdict
    died in the probe    the engine's fault, not the row's

One killer among k slots is found after at most 2 + ceil(log2 k) + 1 deaths (first, together, halvings, alone).
Groups are taken depth first, so an engine that dies of everything reaches its probe, and its verdict, early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from raydecode.corpus.intervals import Cover, Span


@dataclass(slots=True)
class Group:
    number: int
    rows: list[Span]  # not committed
    probed: bool = False  # a good probe on the engine that runs it now

    @property
    def alone(self) -> bool:
        return len(self.rows) == 1


class Hunt:
    """The suspects. Every row is in one group, or condemned, or free; `held` is the cover of the first two."""

    def __init__(
        self,
        groups: Sequence[Sequence[Span]] = (),
        condemned: Iterable[Span] = (),
        tries: dict[Span, int] | None = None,
    ) -> None:
        self._number = 0
        self._waiting: deque[Group] = deque()
        self._running: dict[str, Group] = {}
        self.condemned: deque[Span] = deque(condemned)
        self.tries: dict[Span, int] = dict(tries or {})
        for rows in groups:
            self._push(list(rows), last=True)

    def take(self, worker: str) -> Group | None:
        """The next group, now this worker's."""
        if not self._waiting:
            return None
        group = self._waiting.popleft()
        group.probed = False
        self._running[worker] = group
        return group

    def of(self, worker: str) -> Group | None:
        return self._running.get(worker)

    def put_back(self, worker: str) -> None:
        """The worker is gone without blame: its group waits again, unchanged."""
        group = self._running.pop(worker, None)
        if group is not None:
            self._waiting.appendleft(group)

    def committed(self, worker: str, done: Cover) -> None:
        """Rows that are done are cleared; a group without rows has passed."""
        group = self._running.get(worker)
        if group is not None:
            for row in group.rows:
                if done.covers(row):
                    self.tries.pop(row, None)
            group.rows = [row for row in group.rows if not done.covers(row)]
            if not group.rows:
                del self._running[worker]

    def died(self, worker: str, in_slots: Collection[Span]) -> bool:
        """A blaming death. True when it is no row's fault: nothing ran, or the probe did.

        `in_slots`: rows that had started and not finished, of the group or not (a worker may die while it still
        drains other rows before its group; then the group waits again and the others become suspects).
        """
        group = self._running.pop(worker, None)
        mine = [row for row in group.rows if row in in_slots] if group else []
        others = sorted(row for row in in_slots if group is None or row not in group.rows)
        if group is not None and not mine:
            self._waiting.appendleft(group)
        elif group is not None and group.alone:
            if group.probed:
                self._count(mine)
                self.condemned.append(mine[0])
            else:
                self._waiting.appendleft(group)
                mine = []
        elif group is not None:
            self._count(mine)
            half = (len(mine) + 1) // 2
            self._push(mine[half:])
            self._push(mine[:half])
        if others:
            self._count(others)
            self._push(others, last=True)
        return not mine and not others

    def groups(self) -> list[list[Span]]:
        """All groups, running ones first (for the log)."""
        return [group.rows for group in (*self._running.values(), *self._waiting)]

    def held(self) -> Cover:
        return Cover([*(row for rows in self.groups() for row in rows), *self.condemned])

    @property
    def size(self) -> int:
        return sum(map(len, self.groups())) + len(self.condemned)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._running or self.condemned)

    def _count(self, rows: Iterable[Span]) -> None:
        for row in rows:
            self.tries[row] = self.tries.get(row, 0) + 1

    def _push(self, rows: list[Span], last: bool = False) -> None:
        if rows:
            self._number += 1
            group = Group(self._number, rows)
            self._waiting.append(group) if last else self._waiting.appendleft(group)
