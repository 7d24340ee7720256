"""What a job will take, from a minute of calibration on a sample of its rows; and how the fact compared.

    tokens  = rows that will run * mean output tokens of the sample
    seconds = start-up + tokens / (tokens per second of one engine * actors)
    cost    = seconds * actors * price per hour / 3600

The interval (about 80 %) holds the sampling error of the mean length, with Student's t for small samples replaced by
the normal quantile, and the spread of the rate over the calibration's halves. Not in it: a machine that gets busier,
and lengths of a corpus whose first rows differ from its rest (the sample is spread over the input to avoid that).
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
    lengths: Sequence[float],
    rates: Sequence[float],
    startup_s: float,
    memory_bytes: int,
    limit: float = math.inf,
    actors: int = 1,
    price: Mapping[str, Any] | None = None,
) -> Forecast:
    """lengths: output tokens (all samples) of each calibrated row; rates: tokens/s of stretches of the calibration;
    limit: most tokens a row may have, which bounds the interval."""
    n = len(lengths)
    mean = sum(lengths) / n
    sd = math.sqrt(sum((x - mean) ** 2 for x in lengths) / (n - 1)) if n > 1 else mean
    rate = sum(rates) / len(rates)
    rate_sd = math.sqrt(sum((x - rate) ** 2 for x in rates) / (len(rates) - 1)) if len(rates) > 1 else 0.1 * rate
    running = rows * (1 - failing_share)
    length_error = sd / mean * math.sqrt(1 / n + 1 / max(running, 1.0)) if mean else 0.0
    both = math.sqrt(length_error**2 + (rate_sd / rate) ** 2)
    tokens, most = running * mean, running * limit
    spread, spread_tokens, spread_rate = (math.exp(Z80 * error) for error in (both, length_error, rate_sd / rate))
    slowest = min(tokens * spread, most * spread_rate)
    low, middle, high = (startup_s + t / (rate * actors) for t in (tokens / spread, tokens, slowest))
    hour = None if price is None else float(price["per_hour"]) * actors / 3600
    return Forecast(
        rows=rows,
        failing_rows=rows * failing_share,
        output_tokens=tokens,
        output_tokens_low=tokens / spread_tokens,
        output_tokens_high=min(tokens * spread_tokens, most),
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
