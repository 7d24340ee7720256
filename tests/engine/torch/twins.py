"""Attention as one would write it first: right up to rounding, and found out by every test of the law.

halves           the weighted sum split by the number of keys of the longest row, as one product over all keys does it
bare rows        query rows that are not filled up to a tile
scattered paths  a tree's nodes read their ancestors where they lie, behind an ancestor mask (columns with holes)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from raydecode.engine.torch import attention, layout
from raydecode.engine.torch import lane as lane_module
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.layout import Layout, Run


def _halves(parts: Sequence[Tensor]) -> Tensor:
    middle = len(parts) // 2
    return parts[0] if not middle else _halves(parts[:middle]) + _halves(parts[middle:])


class _Scattered(Layout):
    """Trees as chains of columns, with a mask."""

    def __init__(self, cache: Cache, runs: Sequence[Run], device: Any = "cpu") -> None:
        super().__init__(cache, [_Chain(run.slot, run.start, run.first, run.prefix, run.tree) for run in runs], device)
        self._runs = runs
        self.column_M = torch.tensor([run.start + i for run in runs for i in range(run.length)])

    def hidden_few(self, window: int | None) -> Tensor:
        hidden = self._hidden(self.column_M[self.few_N], self.longest, None).clone()
        at = {node: n for n, node in enumerate(self.few_N.tolist())}
        for run in self._runs:
            base = run.start + run.prefix
            for node in range(len(run.tree) if run.tree else 0):
                assert run.tree is not None
                off = [base + other for other in range(node) if other not in run.tree.path(node)]
                if run.first + run.prefix + node in at:
                    hidden[at[run.first + run.prefix + node], off] = True
        return hidden[:, None, None]


class _Chain(Run):
    @property
    def branches(self) -> bool:
        return False


TWINS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "halves": lambda patch: patch.setattr(attention, "_in_order", _halves),
    "bare rows": lambda patch: [patch.setattr(module, "TILE", 1) for module in (attention, layout)],
    "scattered paths": lambda patch: [
        patch.setattr(layout, "MANY", 10**6),
        patch.setattr(lane_module, "Layout", _Scattered),
    ],
}
