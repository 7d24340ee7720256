"""Amounts over time in bounded memory: when there are too many bins, every two become one.

An amount that accrued evenly from `began` to `ended` is a rate r that switches on and off again, so two events per row
hold it whatever its length: an event at x adds r * (end of its bin - x) to its bin and r * width to each later one.
"""

from __future__ import annotations

import numpy as np

MOST = 120


class Timeline:
    """Seconds in, amounts per second out. Bins are aligned to multiples of their width, so order does not matter."""

    __slots__ = ("_inside", "_slope", "width_s")

    def __init__(self, width_s: float = 1.0) -> None:
        self.width_s = width_s
        self._inside: dict[int, float] = {}  # amount that falls into the bin itself
        self._slope: dict[int, float] = {}  # change of the rate that all later bins see

    def add(self, at_s: np.ndarray, amounts: np.ndarray) -> None:
        """Amounts at moments, one each."""
        self._put(at_s, amounts, np.zeros(len(at_s)))

    def spread(self, began_s: np.ndarray, ended_s: np.ndarray, amounts: np.ndarray) -> None:
        """Amounts that accrued evenly between two moments."""
        long = ended_s - began_s > 1e-6
        self.add(ended_s[~long], amounts[~long])
        began, ended = began_s[long], ended_s[long]
        rate = amounts[long] / (ended - began)
        for at, change in ((began, rate), (ended, -rate)):
            left = (np.floor(at / self.width_s) + 1) * self.width_s - at
            self._put(at, change * left, change)

    def _put(self, at_s: np.ndarray, inside: np.ndarray, slope: np.ndarray) -> None:
        if not len(at_s):
            return
        bins, place = np.unique(np.floor(at_s / self.width_s).astype(np.int64), return_inverse=True)
        for store, values in ((self._inside, inside), (self._slope, slope)):
            sums = np.bincount(place.ravel(), weights=values)
            for bin, amount in zip(bins.tolist(), sums.tolist(), strict=True):
                store[bin] = store.get(bin, 0.0) + amount
        while max(self._inside) - min(self._inside) >= MOST:
            self._coarsen()

    def _coarsen(self) -> None:
        inside: dict[int, float] = {}
        slope: dict[int, float] = {}
        for bin, amount in self._inside.items():
            earlier = bin % 2 == 0  # what it sends to later bins falls into the same double bin once
            own = amount + (self._slope[bin] * self.width_s if earlier else 0.0)
            inside[bin // 2] = inside.get(bin // 2, 0.0) + own
            slope[bin // 2] = slope.get(bin // 2, 0.0) + self._slope[bin]
        self.width_s *= 2
        self._inside, self._slope = inside, slope

    def rates(self, width_s: float | None = None) -> list[tuple[float, float]]:
        """(start of bin [s], amount per second), holes as zeros; at least as wide as `width_s`."""
        while width_s is not None and self.width_s < width_s:
            self._coarsen()
        if not self._inside:
            return []
        out, rate = [], 0.0
        for bin in range(min(self._inside), max(self._inside) + 1):
            amount = rate * self.width_s + self._inside.get(bin, 0.0)
            out.append((bin * self.width_s, max(amount, 0.0) / self.width_s))
            rate += self._slope.get(bin, 0.0)
        return out
