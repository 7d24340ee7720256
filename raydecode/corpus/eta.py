"""When will it be done? From tokens left, with an interval.

    tokens left = sum over rows left of a row's expected tokens;   time left = tokens left / rate

Row lengths are heavy-tailed and short rows finish first, so the mean over *finished* rows is too low while long rows
still run: rows in slots are counted as censored observations and the mean is the exponential (memoryless) estimate

    mean = (tokens of finished rows + tokens of running rows so far) / finished rows

Rate: tokens per second over the last WINDOW_S. Interval: 90 %, from the spread of row lengths over the rows left
(their sum varies with s sqrt(n)), the error of their mean (s sqrt(n^2 / m)), and the rate's spread between windows.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
_Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds left: expected, and the 90 % interval."""

    seconds: float
    low: float
    high: float


@dataclass(slots=True)
class Estimate:
    """Fold of finished rows and of token counts over time."""

    rows: int = 0
    tokens: float = 0.0
    squares: float = 0.0
    marks: deque[tuple[float, float]] = field(default_factory=deque)  # (time, tokens of the whole job)

    def finished(self, tokens: int, rows: int = 1) -> None:
        """`rows` rows left the engine with `tokens` in all (a part: their mean counts for each)."""
        self.rows += rows
        self.tokens += tokens
        self.squares += tokens * tokens / max(rows, 1)

    def mark(self, now: float, tokens: int) -> None:
        """All tokens generated until now."""
        self.marks.append((now, tokens))
        while len(self.marks) > 2 and now - self.marks[0][0] > 2 * WINDOW_S:
            self.marks.popleft()

    def rate(self) -> float:
        """Tokens per second over the last window, 0 when unknown."""
        if len(self.marks) < 2:
            return 0.0
        now, tokens = self.marks[-1]
        old = next((mark for mark in self.marks if now - mark[0] <= WINDOW_S), self.marks[0])
        old = self.marks[-2] if old[0] == now else old
        return max(0.0, (tokens - old[1]) / (now - old[0])) if now > old[0] else 0.0

    def left(self, rows_waiting: float, rows_running: int, tokens_running: int) -> Eta | None:
        """None until a row has finished and tokens flow."""
        rate = self.rate()
        if not self.rows or rate <= 0:
            return None
        mean = (self.tokens + tokens_running) / self.rows
        spread = math.sqrt(max(self.squares / self.rows - (self.tokens / self.rows) ** 2, 0.0))
        spread = max(spread, mean / math.sqrt(self.rows))
        n = rows_waiting + rows_running  # memoryless: a running row has a full mean to go
        tokens = n * mean
        error = _Z90 * math.hypot(spread * math.sqrt(n), spread * n / math.sqrt(self.rows), self._unsteady() * tokens)
        return Eta(tokens / rate, max(0.0, tokens - error) / rate, (tokens + error) / rate)

    def _unsteady(self) -> float:
        """Coefficient of variation of the rate over the marks, divided by the root of their number."""
        marks = list(self.marks)
        rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(marks) if b[0] > a[0]]
        if len(rates) < 3:
            return 0.25
        mean = sum(rates) / len(rates)
        if mean <= 0:
            return 0.25
        return math.sqrt(sum((r - mean) ** 2 for r in rates) / (len(rates) - 1) / len(rates)) / mean
