"""Seconds left, from the tokens left and not from the rows left, with an interval.

    rows_left    = rows * (planned - done) / done            positions are rows or bytes, whatever the input counts in
    tokens_left  = rows_left * mean tokens per row
    seconds_left = tokens_left / rate

The interval (about 80 %) adds three independent relative errors: of the mean over `rows` rows (cv / sqrt(rows)), of the
sum over the rows left (cv / sqrt(rows_left)), and of the rate (its spread over the last samples). Lengths of generated
texts have a coefficient of variation cv near 1 when most rows end by themselves, near 0 when most hit max_tokens; 1 is
assumed where it is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z80 = 1.2816
"""Standard normal quantile of 0.9."""


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds."""

    low_s: float
    middle_s: float
    high_s: float


def eta(
    *, rows: int, tokens: int, done: int, planned: int, rate: float, rate_sd: float = 0.0, cv: float = 1.0
) -> Eta | None:
    """Time left of a job; None before anything is known.

    rows, tokens:  finished rows and their output tokens
    done, planned: positions finished and in all
    rate, rate_sd: tokens per second now and the spread of that estimate
    """
    if done >= planned:
        return Eta(0.0, 0.0, 0.0)
    if rows <= 0 or tokens <= 0 or done <= 0 or rate <= 0:
        return None
    rows_left = rows * (planned - done) / done
    middle = rows_left * (tokens / rows) / rate
    error = math.sqrt(cv**2 / rows + cv**2 / max(rows_left, 1.0) + (rate_sd / rate) ** 2)
    spread = math.exp(Z80 * error)  # errors are relative: the interval is symmetric on a logarithmic scale
    return Eta(middle / spread, middle, middle * spread)
