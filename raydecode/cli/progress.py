"""The line that moves while a job runs: rows, tokens per second, time left from the tokens left, with an interval.

On a terminal it is redrawn; in a log it is printed every LOG_S seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from raydecode.cli.terminal import count, err, span

LOG_S, WINDOW_S = 10.0, 30.0


class Display:
    """A context manager; `show` takes the views of `pipelines.generate.run`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before: int | None = None  # rows that were there when this run began
        self._marks: deque[tuple[float, int]] = deque()  # (elapsed, tokens) of the last WINDOW_S
        self._told_at = float("-inf")
        self._live = Live(console=err, refresh_per_second=4, transient=True) if err.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, view: Any) -> None:
        """Draw, or print when it is time again."""
        ledger = view.ledger
        share, text = (None, view.phase) if ledger is None else self._state(view)
        if self._live:
            self._live.update(self._bar(share, text))
        elif self._clock() - self._told_at >= LOG_S:
            self._told_at = self._clock()
            err.print(text, markup=False)

    def _state(self, view: Any) -> tuple[float, str]:
        """Share done, and the line."""
        p = view.ledger
        if self._before is None:
            self._before = p.rows
        rows = p.rows - self._before + p.ready
        done = p.positions_done + p.ready_positions
        left = rows * (p.positions_planned - done) / done if done else 0.0
        total = f" of about {count(self._before + rows + left)}" if done else ""
        parts = [
            f"{count(self._before + rows)}{total} rows",
            f"{count(p.generated)} tokens",
            f"{count(self._rate(view.elapsed_s, p.generated))} tokens/s",
            f"{p.workers} worker{'s' if p.workers != 1 else ''}",
        ]
        if p.errors:
            parts.append(f"{count(p.errors)} errors")
        if p.deaths:
            parts.append(f"{p.deaths} engine deaths")
        if p.suspects:
            parts.append(f"{p.suspects} rows under suspicion")
        if p.eta:
            parts.append(f"{span(p.eta.seconds)} left ({span(p.eta.low)} to {span(p.eta.high)})")
        return done / p.positions_planned if p.positions_planned else 1.0, ", ".join(parts)

    def _rate(self, now: float, tokens: int) -> float:
        """Tokens per second over the last WINDOW_S."""
        self._marks.append((now, tokens))
        while now - self._marks[0][0] > WINDOW_S:
            self._marks.popleft()
        began, before = self._marks[0]
        return (tokens - before) / (now - began) if now > began else 0.0

    @staticmethod
    def _bar(share: float | None, text: str) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_row(ProgressBar(total=1.0, completed=share or 0.0, width=24, pulse=share is None), text)
        return table
