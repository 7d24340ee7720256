"""Sums over time in bounded memory: when there are too many bins, every two become one."""

from __future__ import annotations

import numpy as np

MOST = 240


class Timeline:
    """Sums of amounts at moments [s]; the bins are aligned to multiples of their width, so order does not matter."""

    __slots__ = ("_bins", "width_s")

    def __init__(self, width_s: float = 1.0) -> None:
        self.width_s = width_s
        self._bins: dict[int, float] = {}

    def add(self, at_s: np.ndarray, amounts: np.ndarray) -> None:
        """Amounts at moments, one each."""
        if not len(at_s):
            return
        seconds, place = np.unique(np.floor(at_s / self.width_s).astype(np.int64), return_inverse=True)
        sums = np.bincount(place.ravel(), weights=amounts)
        for bin, amount in zip(seconds.tolist(), sums.tolist(), strict=True):
            self._bins[bin] = self._bins.get(bin, 0.0) + amount
        while max(self._bins) - min(self._bins) >= MOST:
            self._coarsen()

    def _coarsen(self) -> None:
        self.width_s *= 2
        old, self._bins = self._bins, {}
        for bin, amount in old.items():
            self._bins[bin // 2] = self._bins.get(bin // 2, 0.0) + amount

    def rates(self, width_s: float | None = None) -> list[tuple[float, float]]:
        """(start of bin [s], amount per second), holes as zeros."""
        while width_s is not None and self.width_s < width_s:
            self._coarsen()
        if not self._bins:
            return []
        first, last = min(self._bins), max(self._bins)
        return [(bin * self.width_s, self._bins.get(bin, 0.0) / self.width_s) for bin in range(first, last + 1)]
