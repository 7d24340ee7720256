"""What a job will take, from a minute of calibration on a sample of its rows; and how the fact compared.

    tokens  = rows that will run * mean output tokens of the sample
    seconds = start-up + tokens / (tokens per second of one engine * actors)
    cost    = seconds * actors * price per hour / 3600

A row that still ran at the end of the calibration has a length between its age and its limit: the forecast takes the
middle, the interval all of it. The interval (about 80 %) further holds the sampling error of the mean length and the
spread of the rate over the calibration's stretches. Not in it: a machine that gets busier, and a corpus whose sample
(spread over the input) differs from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Z80 = 1.2816
"""Standard normal quantile of 0.9: 80 % lie within plus and minus this."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds, tokens, bytes. `low`, `high`: an interval of about 80 %."""

    rows: int
    failing_rows: float
    output_tokens: float
    output_tokens_low: float
    output_tokens_high: float
    tokens_per_s: float
    seconds: float
    seconds_low: float
    seconds_high: float
    memory_bytes: int
    cost: float | None
    cost_low: float | None
    cost_high: float | None
    currency: str | None
    actors: int
    sampled_rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def forecast(
    *,
    rows: int,
    failing_share: float,
    lengths: Sequence[tuple[float, float]],
    rates: Sequence[float],
    startup_s: float,
    memory_bytes: int,
    limit: float = math.inf,
    actors: int = 1,
    price: Mapping[str, Any] | None = None,
) -> Forecast:
    """lengths: output tokens (all samples) of each calibrated row, at least and at most: equal when it finished;
    rates: tokens/s of stretches of the calibration; limit: most tokens a row may have, which bounds the interval."""
    n = len(lengths)
    least, most_mean = (sum(one[i] for one in lengths) / n for i in (0, 1))
    mean = (least + most_mean) / 2
    sd = math.sqrt(sum(((a + b) / 2 - mean) ** 2 for a, b in lengths) / (n - 1)) if n > 1 else mean
    rate = sum(rates) / len(rates)
    rate_sd = math.sqrt(sum((x - rate) ** 2 for x in rates) / (len(rates) - 1)) if len(rates) > 1 else 0.1 * rate
    running = rows * (1 - failing_share)
    length_error = sd / mean * math.sqrt(1 / n + 1 / max(running, 1.0)) if mean else 0.0
    both = math.sqrt(length_error**2 + (rate_sd / rate) ** 2)
    tokens, most = running * mean, running * limit
    spread, spread_tokens, spread_rate = (math.exp(Z80 * error) for error in (both, length_error, rate_sd / rate))
    fewest, longest = running * least, running * most_mean  # if the rows that still ran had all ended, or gone on
    slowest = min(longest * spread, most * spread_rate)
    low, middle, high = (startup_s + t / (rate * actors) for t in (fewest / spread, tokens, slowest))
    hour = None if price is None else float(price["per_hour"]) * actors / 3600
    return Forecast(
        rows=rows,
        failing_rows=rows * failing_share,
        output_tokens=tokens,
        output_tokens_low=fewest / spread_tokens,
        output_tokens_high=min(longest * spread_tokens, most),
        tokens_per_s=rate * actors,
        seconds=middle,
        seconds_low=low,
        seconds_high=high,
        memory_bytes=memory_bytes,
        cost=None if hour is None else middle * hour,
        cost_low=None if hour is None else low * hour,
        cost_high=None if hour is None else high * hour,
        currency=None if price is None else str(price["currency"]),
        actors=actors,
        sampled_rows=n,
    )


def compare(plan: Mapping[str, Any], fact: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Plan beside fact, quantity by quantity; `inside` says whether the fact fell into the interval."""
    out = []
    for name in ("seconds", "output_tokens", "cost", "failing_rows", "tokens_per_s", "memory_bytes"):
        planned, real = plan.get(name), fact.get(name)
        if planned is None or real is None:
            continue
        low, high = plan.get(f"{name}_low"), plan.get(f"{name}_high")
        inside = None if low is None or high is None else bool(low <= real <= high)
        out.append({"quantity": name, "plan": planned, "low": low, "high": high, "fact": real, "inside": inside})
    return out
