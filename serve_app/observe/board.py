"""One view over the counts of several ingress processes, so that it does not matter which of them is scraped.

    an ingress process                      the board (one actor of the application)
    every PUSH_S: push(me, snapshot) -----> keeps the last of each
    GET /metrics: read(me)           -----> the others' last, to which it adds its own of this moment

A process that is gone leaves its counters, which may not shrink, and takes its gauges along. The board itself may die:
what processes that were gone by then had counted is forgotten, which Prometheus sees as a reset.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_app.observe.metrics import Snapshot

PUSH_S = 2.0
STALE_S = 30.0
KEEP = 32
"""Processes that are gone and kept apart, should they come back; older ones are summed up."""


class Board:
    """clock: monotonic seconds"""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, Snapshot]] = {}
        self._past: Snapshot = {}

    def push(self, source: str, snapshot: Snapshot) -> None:
        """What a process has counted since it began."""
        self._last[source] = self._clock(), snapshot
        gone = [name for name, (at, _) in self._last.items() if self._clock() - at > STALE_S]
        for name in gone[: max(0, len(gone) - KEEP)]:
            self._past = summed(self._past, without_gauges(self._last.pop(name)[1]))

    def read(self, but: str = "") -> list[Snapshot]:
        """The snapshots of all processes but one."""
        now = self._clock()
        held = [
            one if now - at <= STALE_S else without_gauges(one)
            for name, (at, one) in self._last.items()
            if name != but
        ]
        return [*held, self._past] if self._past else held


def without_gauges(snapshot: Snapshot) -> Snapshot:
    return {name: one for name, one in snapshot.items() if one[0] != "gauge"}


def summed(one: Snapshot, other: Snapshot) -> Snapshot:
    """Sample by sample."""
    out: Snapshot = {name: (kind, help, dict(samples)) for name, (kind, help, samples) in one.items()}
    for name, (kind, help, samples) in other.items():
        held = out.setdefault(name, (kind, help, {}))[2]
        for key, value in samples.items():
            held[key] = held.get(key, 0.0) + value
    return out
