"""Attention weights of named layers, for whoever reads them: `attention.i` among what `Needs.hidden` may name.

A call keeps the queries of its wanted nodes at the layers that were asked for; the weights of a node are made when
somebody looks at them, from its query and the keys that the cache holds on its path:

    weights[h, s] = softmax over s of (q_h k_s scale), soft-capped and windowed as the layer does, float32

So a row that does not look costs a copy of its queries in calls where another one asks, and nothing elsewhere; no bit
of a logit depends on who looks. They are computed anew and not taken from the product that made the text: equal up to
float32's rounding. Good until the cache moves on, which is after the walk: what was looked at stays.

Legend: N wanted nodes, H heads, K key heads, D head size, S columns of one node's path, itself the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from raydecode.engine.lane import Chunk
from raydecode.engine.torch.cache import PAGE, Cache

PREFIX = "attention."


@dataclass(frozen=True, slots=True)
class _Seen:
    query_NHD: Tensor
    scale: float
    softcap: float | None
    window: int | None


class Watch:
    """The layers of one call that somebody reads. wanted: the tree nodes' places among the call's nodes."""

    def __init__(self, sites: Sequence[str], chunks: Sequence[Chunk], wanted: Sequence[int], cache: Cache) -> None:
        self._seen: dict[int, _Seen | None] = {int(site.removeprefix(PREFIX)): None for site in sites}
        self._wanted = wanted
        self.weights = {site: Weights(self, int(site.removeprefix(PREFIX)), chunks, cache) for site in sites}

    def see(self, index: int, query_MHD: Tensor, scale: float, softcap: float | None, window: int | None) -> None:
        """Called by every layer's attention."""
        if index in self._seen:
            self._seen[index] = _Seen(query_MHD[list(self._wanted)], scale, softcap, window)

    def seen(self, index: int) -> _Seen:
        found = self._seen[index]
        assert found is not None, "every layer calls the attention function"
        return found


class Weights(Sequence[Tensor]):
    """float32 [H, S] of each wanted node, made on access."""

    def __init__(self, watch: Watch, index: int, chunks: Sequence[Chunk], cache: Cache) -> None:
        self._watch, self._index, self._cache = watch, index, cache
        self._where = [(chunk, node) for chunk in chunks for node in range(len(chunk.tree) if chunk.tree else 0)]

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...
    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        chunk, node = self._where[at]
        assert chunk.tree is not None
        base = chunk.start + len(chunk.prefix)
        columns = [*range(base), *(base + step for step in chunk.tree.path(node))]
        table, seen = self._cache.pages.tables[chunk.slot], self._watch.seen(self._index)
        keys, _ = self._cache.layer(self._index)
        page_S, offset_S = ([divmod(column, PAGE)[i] for column in columns] for i in (0, 1))
        key_SKD = keys[[table[page] for page in page_S], :, offset_S].float()
        query_KGD = seen.query_NHD[at].float().unflatten(0, (key_SKD.shape[1], -1))
        scores_HS = torch.einsum("kgd,skd->kgs", query_KGD, key_SKD).flatten(0, 1) * seen.scale
        if seen.softcap:
            scores_HS = torch.tanh(scores_HS / seen.softcap) * seen.softcap
        if seen.window is not None:
            scores_HS[:, : max(len(columns) - seen.window, 0)] = -math.inf
        return scores_HS.softmax(-1)
