"""What the ledger knows of a worker, and what follows from that alone: is it overdue, what could it spare?"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.messages import Kill, Limits, Reply


@dataclass(slots=True)
class Worker:
    """A generation actor as the ledger sees it; times are monotonic seconds."""

    assigned: Cover = field(default_factory=Cover)  # with the worker, not committed
    condemned: set[Span] = field(default_factory=set)
    slots: dict[Span, float] = field(default_factory=dict)  # row -> when it started
    ready: set[Span] = field(default_factory=set)  # finished, not committed
    ticket: int = -1
    reply: Reply | None = None
    tokens: int = 0
    waiting: int = 0
    peak: int = 0  # most rows ever in slots
    step_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    progress_at: float = 0.0
    asked_at: float | None = None
    asked_for: str = ""
    gifts: deque[Span] = field(default_factory=deque)  # rows another worker gave back for this one
    draining: bool = False
    killed: bool = False

    def overdue(self, now: float, limits: Limits) -> str | None:
        """The watchdog's verdict: why this worker should be killed, naming rows that wait."""
        limit = limits.first_step_s
        if self.step_s:
            limit = max(limits.stall_s, limits.stall_steps * statistics.median(self.step_s))
        if not self.slots or self.killed or now - self.progress_at <= limit:
            return None
        rows = ", ".join(f"{r.input}:{r.start}" for r in sorted(self.slots)[:5])
        return f"no token for {now - self.progress_at:.0f} s with {len(self.slots)} rows running ({rows} ...)"

    def keep(self, meant: Callable[[Span], bool]) -> None:
        """Forget started and finished rows that are not this worker's any more."""
        self.slots = {row: at for row, at in self.slots.items() if meant(row)}
        self.ready = {row for row in self.ready if meant(row)}

    def ages(self, now: float) -> list[int]:
        """Tokens that each running row has about made: its time over the median step."""
        step = statistics.median(self.step_s) if self.step_s else 0.0
        return [int((now - at) / step) if step > 0 else 0 for at in self.slots.values()]

    def kill(self, name: str, reason: str) -> Kill:
        """The order to end it; given once."""
        self.killed = True
        return Kill(name, reason)


def spare_rows(me: Worker, idle: Mapping[str, Worker], *, peak: int) -> tuple[int, str]:
    """Of the rows that wait at `me`: how many for which idle worker. They fill its free slots, or even out two queues.

    What comes back is reserved for the worker it was asked for: whoever asks first would often be the giver.
    peak: most rows that any worker ever held in slots
    """
    for name, other in idle.items():
        if other.waiting or other.gifts:
            continue
        free = peak - len(other.slots)
        give = min(me.waiting, free) if free > 0 else me.waiting // 2
        if give > 0:
            return give, name
    return 0, ""
