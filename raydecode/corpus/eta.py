"""When will it be done? From tokens left, with an interval.

    tokens left = rows waiting x E[L] + sum over running rows of E[L - a | L > a];   seconds = tokens left / rate

L is a row's length, a the age of a running row, both in tokens. Short rows finish first, so the mean over *finished*
rows is far too low while long ones still run (0.57 of the truth a quarter into a job with 2 % of rows 20 times
longer). The distribution of L is therefore estimated from finished rows and running ones, the latter as censored
observations (Kaplan and Meier, JASA 53, 1958). Beyond the longest finished row nothing is known but the limit on
tokens: the expectation takes half of the way to it, the interval none of it and all of it. On top of the interval comes
1.645 standard errors (90 %): of the mean length, of the sum over the rows left, and of the rate.

The end of a job is not a matter of rate: its last rows run in emptying slots at the speed of one row each. The
longest of the last S rows (S slots) is expected at the quantile 1 - 1 / 2S of L; the interval has it nowhere, or at the
limit. Simulated (600 rows, 32 slots, asked at a quarter): expectation 1.01 of the truth on lengths 1..64, 0.62 with
2 % of rows 20 times longer, of which few have finished by then; the truth was in the interval 40 of 40 times on both.
Cost: O(distinct lengths) per question.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WINDOW_S = 60.0
_Z90 = 1.645
_MAX_MARKS = 512


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds left: expected, and the interval."""

    seconds: float
    low: float
    high: float


@dataclass(slots=True)
class Estimate:
    """Fold of finished rows' lengths and of token counts over time.

    limit: most tokens a row may have, None when unknown (then twice the longest age seen)
    """

    limit: int | None = None
    lengths: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_MARKS))

    def finished(self, tokens: int) -> None:
        """A row left the engine with so many tokens."""
        self.lengths[tokens] += 1
        self.rows += 1

    def mark(self, now: float, tokens: float) -> None:
        """All tokens generated until now."""
        if self.marks and now - self.marks[-1][0] < WINDOW_S / 60:
            return
        self.marks.append((now, tokens))

    def rate(self) -> float:
        """Tokens per second over the last window, 0 when unknown."""
        if len(self.marks) < 2:
            return 0.0
        now, tokens = self.marks[-1]
        start = next(mark for mark in self.marks if now - mark[0] <= WINDOW_S)
        at, before = self.marks[-2] if start[0] == now else start
        return max(0.0, (tokens - before) / (now - at))

    def left(self, rows_waiting: float, ages: Sequence[int]) -> Eta | None:
        """rows_waiting: not started; ages: tokens so far of each running row. None until a row has finished and
        tokens flow."""
        rate = self.rate()
        if not self.rows or rate <= 0:
            return None
        limit = self.limit if self.limit and max(self.lengths) <= self.limit else None  # rows may set their own
        if limit:  # ages are told from time, and a row waits and reads its prompt first
            ages = [min(age, limit - 1) for age in ages]
        curve = _Survival.of(self.lengths, ages)
        far = float(max(limit or 2 * max(ages, default=0), curve.last))
        error = _Z90 * math.hypot(
            curve.deviation() * math.sqrt(rows_waiting + len(ages)),
            curve.deviation() * (rows_waiting + len(ages)) / math.sqrt(self.rows),
        )
        unsteady = _Z90 * self._unsteady()
        speed = rate / max(len(ages), 1)
        out = []
        for tail, sign in ((0.5, 0), (0.0, -1), (1.0, 1)):
            rest = [curve.residual(age, tail, far) for age in ages]
            tokens = max(0.0, rows_waiting * curve.residual(0, tail, far) + sum(rest) + sign * error)
            steps = max(tokens / rate, max(rest, default=0.0) / speed)
            if rows_waiting > 0 and sign >= 0:
                longest = far if sign else curve.longest(max(len(ages), 1), tail, far)
                steps += max(0.0, longest - curve.residual(0, tail, far) / 2) / speed
            out.append(steps * max(0.0, 1 + sign * unsteady))
        return Eta(*out)

    def _unsteady(self) -> float:
        """Standard error of the rate, relative: spread over the marks by the root of their number."""
        marks = list(self.marks)
        rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks) if b[0] > a[0]]
        if len(rates) < 3:
            return 0.25
        mean = sum(rates) / len(rates)
        if mean <= 0:
            return 0.25
        return math.sqrt(sum((r - mean) ** 2 for r in rates) / (len(rates) - 1) / len(rates)) / mean


@dataclass(frozen=True, slots=True)
class _Survival:
    """S(l) = P(L > l) as steps: after `at[i]` it is `share[i]`; `area[i]` is its integral from 0 to `at[i]`."""

    at: list[int]
    share: list[float]
    area: list[float]

    @classmethod
    def of(cls, lengths: Counter[int], ages: Sequence[int]) -> _Survival:
        censored = sorted(ages)
        at_risk = sum(lengths.values()) + len(censored)
        at, share, area = [0], [1.0], [0.0]
        gone = 0
        for length in sorted(lengths):
            now = bisect_right(censored, length - 1)  # running rows younger than this length leave the risk set
            at_risk -= now - gone
            gone = now
            area.append(area[-1] + share[-1] * (length - at[-1]))
            share.append(share[-1] * (1 - lengths[length] / at_risk))
            at.append(length)
            at_risk -= lengths[length]
        return cls(at, share, area)

    @property
    def last(self) -> int:
        return self.at[-1]

    def residual(self, age: int, tail: float, far: float) -> float:
        """E[L - age | L > age]; beyond the last finished length, `tail` of the way to `far`."""
        beyond = tail * max(0.0, far - max(age, self.last))
        i = bisect_right(self.at, age) - 1
        here = self.share[i]
        if age >= self.last or here <= 0:
            return beyond
        covered = self.area[i] + here * (age - self.at[i])
        return (self.area[-1] - covered + self.share[-1] * beyond) / here

    def longest(self, rows: int, tail: float, far: float) -> float:
        """About the longest of so many rows: the length that 1 in 2 x rows exceeds."""
        for at, share in zip(self.at, self.share, strict=True):
            if share <= 0.5 / rows:
                return float(at)
        return self.last + tail * max(0.0, far - self.last)

    def deviation(self) -> float:
        """Standard deviation of L as far as it is known: at least the mean's, as for exponential lengths."""
        mean = self.area[-1]
        square = sum(
            s * (b * b - a * a) for s, (a, b) in zip(self.share, pairwise(self.at), strict=False)
        )  # E[L^2] = integral of 2 l S(l)
        return max(math.sqrt(max(square - mean * mean, 0.0)), mean / 2)
