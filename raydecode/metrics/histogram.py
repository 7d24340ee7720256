"""Quantiles in bounded memory: counts in buckets whose borders grow by a constant factor.

bucket(x) = floor(log(x) / log(GROWTH)); a quantile is its bucket's geometric middle, so its relative error is at most
sqrt(GROWTH) - 1 = 1 %. Mean, minimum and maximum are exact. Memory: one integer per bucket in use; from a microsecond
to a year there are 1,600. (The idea of DDSketch, Masson et al., arXiv:1908.10693, without its bucket collapse.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

GROWTH = 1.02
_LOG = math.log(GROWTH)


class Histogram:
    """Non-negative numbers; zero has a bucket of its own. Of whole numbers the quantiles and bars are whole too."""

    __slots__ = ("_counts", "_whole", "_zeros", "largest", "n", "smallest", "squares", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._zeros, self._whole = 0, True
        self.n, self.total, self.squares = 0, 0.0, 0.0
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Finite numbers >= 0."""
        if not len(values):
            return
        values = np.asarray(values, dtype=np.float64)
        self.n += len(values)
        self.total += float(values.sum())
        self.squares += float((values * values).sum())
        self.smallest, self.largest = min(self.smallest, float(values.min())), max(self.largest, float(values.max()))
        self._whole = self._whole and bool((values == np.floor(values)).all())
        positive = values[values > 0]
        self._zeros += len(values) - len(positive)
        buckets, counts = np.unique(np.floor(np.log(positive) / _LOG).astype(np.int64), return_counts=True)
        for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation of the sample; 0 with fewer than two values."""
        return math.sqrt(max(self.squares - self.n * self.mean**2, 0.0) / (self.n - 1)) if self.n > 1 else 0.0

    def quantile(self, q: float) -> float:
        """The value below which a share `q` lies; NaN when empty."""
        if not self.n:
            return math.nan
        rank = q * (self.n - 1)
        seen = self._zeros
        if rank < seen:
            return 0.0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if rank < seen:
                return self._middle(bucket)
        return self.largest

    def bars(self, most: int = 24) -> list[tuple[float, float, int]]:
        """(from, to, count) over equal widths between minimum and maximum: what a chart draws."""
        if not self.n:
            return []
        low, high = self.smallest, self.largest
        if low == high:
            return [(low, high, self.n)]
        width = (high - low) / most
        if self._whole:
            width = max(1, math.ceil((high - low + 1) / most))
            most = math.ceil((high - low + 1) / width)
        counts = [0] * most
        counts[0] += self._zeros
        for bucket, count in self._counts.items():
            counts[min(int((self._middle(bucket) - low) / width), most - 1)] += count
        return [(low + i * width, low + (i + 1) * width, count) for i, count in enumerate(counts)]

    def _middle(self, bucket: int) -> float:
        middle = min(max(GROWTH ** (bucket + 0.5), self.smallest), self.largest)
        return float(round(middle)) if self._whole else middle

    def to_json(self) -> dict[str, Any] | None:
        """None when empty."""
        if not self.n:
            return None
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "n": self.n,
            "mean": self.mean,
            "sd": self.sd,
            "min": self.smallest,
            **{name: self.quantile(q) for name, q in shares.items()},
            "max": self.largest,
            "bars": [list(bar) for bar in self.bars()],
        }
