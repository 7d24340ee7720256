"""The layout of a call for the native kernels: for every node the columns of its own path, and nothing else.

A kernel can read a column wherever it lies, so the products, tiles and gathered tails of `layout` are not needed: node
m reads the first base_M[m] columns of its slot's pages and then, in a tree that branches, its ancestors one by one. All
are met in the order of the path, so the bits are those of the chain, and a branching tree costs what a chain costs.

Legend: M nodes of the call; tables: the pages of all slots, one after another; others: page * PAGE + offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from raydecode.engine.torch import native
from raydecode.engine.torch.cache import PAGE, Cache
from raydecode.engine.torch.layout import Run


class Paths:
    """What `attention` and `fused` ask about the runs of one call."""

    def __init__(self, cache: Cache, runs: Sequence[Run]) -> None:
        self.cache = cache
        tables: list[int] = []
        others: list[int] = []
        pages: list[int] = []
        offsets: list[int] = []
        positions: list[int] = []
        starts: list[int] = []
        bases: list[int] = []
        at: list[int] = []
        more: list[int] = []
        for run in runs:
            table = cache.pages.tables[run.slot]
            places = [(table[i // PAGE], i % PAGE) for i in range(run.start, run.start + run.length)]
            pages += [page for page, _ in places]
            offsets += [offset for _, offset in places]
            positions += run.positions()
            starts += [len(tables)] * run.length
            straight = run.prefix if run.branches else run.length
            bases += range(run.start + 1, run.start + straight + 1)
            at += [0] * straight
            more += [0] * straight
            if run.branches:
                assert run.tree is not None
                bases += [run.start + run.prefix] * len(run.tree)
                for node in range(len(run.tree)):
                    path = run.tree.path(node)
                    at.append(len(others))
                    more.append(len(path))
                    for one in path:
                        page, offset = places[run.prefix + one]
                        others.append(page * PAGE + offset)
            tables += table[: -(-(run.start + run.length) // PAGE)]
        self.size = len(pages)
        self.position_M = torch.tensor(positions, dtype=torch.int64)
        self._wide = torch.tensor([pages, offsets, starts, bases, at, more], dtype=torch.int64)
        self._narrow = torch.tensor([*tables, *others], dtype=torch.int32)
        page_M, offset_M, table_M, base_M, other_M, more_M = (row.data_ptr() for row in self._wide)
        first = self._narrow.data_ptr()
        self.about = native.Paths(
            self.size, page_M, offset_M, first, first + 4 * len(tables), table_M, base_M, other_M, more_M
        )
        self.page_M, self.offset_M = self._wide[0], self._wide[1]
        self._scratch: Tensor | None = None

    def pool(self, index: int, heads: int, size: int, value_size: int, like: Tensor) -> native.Pool:
        """A layer's keys and values, made if this is their first use."""
        self.cache.open(index, heads, size, value_size, like)
        keys, values = self.cache.layer(index)
        return native.Pool(keys.data_ptr(), values.data_ptr(), heads, size, value_size)

    def scratch(self, floats: int) -> Tensor:
        """At least so many, the same for all layers of the call."""
        if self._scratch is None or self._scratch.numel() < floats:
            self._scratch = torch.empty(floats)
        return self._scratch

    def attend(self, index: int, query_MHD: Tensor, scale: float, softcap: float | None, window: int | None) -> Tensor:
        """[M, H, D] of stored keys and values."""
        keys, values = self.cache.layer(index)
        pool = native.Pool(keys.data_ptr(), values.data_ptr(), keys.shape[1], keys.shape[3], values.shape[3])
        query_MHD = query_MHD.contiguous()
        heads, size = query_MHD.shape[1:]
        out_MHD = query_MHD.new_empty(self.size, heads, values.shape[3])
        native.native().raydecode_attend(
            byref(self.about), byref(pool), heads, query_MHD.data_ptr(), heads * size, size, out_MHD.data_ptr(),
            scale, softcap or 0.0, window or 0, torch.get_num_threads(),
        )  # fmt: skip
        return out_MHD
