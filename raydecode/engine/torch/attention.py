"""Attention over ragged rows with a slot cache, in a form whose bits depend on the row alone.

Installed as a transformers attention function, so every model family that uses that interface runs on it.
Scores and weights are explicit (softmax(q k^T) v) because the fused kernel's bits depend on how many queries it sees:

 - rows of a product come in multiples of TILE: smaller or odd counts take other kernels (float32, measured on AVX2)
 - keys come in multiples of BLOCK, and the weighted sum runs in pieces of PIECE keys added in order: a longer batch
   mate then only adds exact zeros. One product over all keys splits its sum by their number (192 against 256 keys
   differed in 54 of 54 cases of a probe; pieces of 128: 0).

Legend: M nodes of all rows, N rows that feed one token, H heads, K key heads, G = H/K, D head size, S keys, T new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydecode.engine.torch.cache import Cache, rounded

NAME = "raydecode"
TILE, PIECE = 8, 128


@dataclass(frozen=True, slots=True)
class Run:
    """New tokens of one slot: nodes first..first+length of the call, at columns start..start+length."""

    slot: int
    start: int
    first: int
    length: int


@dataclass(slots=True)
class Layout:
    """Where the nodes of one call lie: the same for all layers. `masks` are made once per window."""

    cache: Cache
    runs: Sequence[Run]
    slot_M: Tensor = field(init=False)
    column_M: Tensor = field(init=False)
    ones: list[Run] = field(init=False)
    many: list[Run] = field(init=False)
    node_N: Tensor = field(init=False)
    slot_N: Tensor = field(init=False)
    size: int = field(init=False)
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slot_M = torch.tensor([run.slot for run in self.runs for _ in range(run.length)])
        self.column_M = torch.tensor([run.start + i for run in self.runs for i in range(run.length)])
        self.ones = [run for run in self.runs if run.length == 1]
        self.many = [run for run in self.runs if run.length > 1]
        self.node_N = torch.tensor([run.first for run in self.ones], dtype=torch.int64)
        self.slot_N = torch.tensor([run.slot for run in self.ones], dtype=torch.int64)
        self.size = rounded(max((run.start + 1 for run in self.ones), default=0))

    def decode_mask(self, window: int | None) -> Tensor:
        """bool [slots used, 1, 1, S], True = attend; slots that feed nothing look at column 0."""
        if (-1, window) not in self.masks:
            last = torch.zeros(int(self.slot_N.max()) + 1, dtype=torch.int64)
            last[self.slot_N] = torch.tensor([run.start for run in self.ones])
            self.masks[-1, window] = _mask(last, self.size, window)[:, None, None]
        return self.masks[-1, window]

    def run_mask(self, run: Run, window: int | None) -> Tensor:
        """bool [T, S], True = attend."""
        if (run.slot, window) not in self.masks:
            last = torch.arange(run.start, run.start + run.length)
            self.masks[run.slot, window] = _mask(last, rounded(run.start + run.length), window)
        return self.masks[run.slot, window]


current: ContextVar[Layout] = ContextVar("layout")
"""The layout of the forward in progress; the attention function has no other way to get it."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, M', D], key and value [1, K, M', D] -> [1, M', H, D].

    M' >= M: the call is padded to a multiple of TILE; padding nodes come out as zeros and are not stored.
    """
    layout, index = current.get(), module.layer_idx
    query_MHD, key_MKD, value_MKD = (x[0].transpose(0, 1) for x in (query, key, value))
    count = layout.slot_M.numel()
    layout.cache.write(index, layout.slot_M, layout.column_M, key_MKD[:count], value_MKD[:count])
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    out_MHD = query_MHD.new_zeros(query_MHD.shape[0], query_MHD.shape[1], value.shape[-1])
    if layout.ones:
        out_MHD[layout.node_N] = _decode(layout, index, query_MHD, scale, softcap, sliding_window)
    for run in layout.many:
        end = run.first + run.length
        out_MHD[run.first : end] = _extend(layout, run, index, query_MHD[run.first : end], scale, softcap, sliding_window)
    return out_MHD[None], None


def _decode(
    layout: Layout, index: int, query_MHD: Tensor, scale: float, softcap: float | None, window: int | None
) -> Tensor:
    """Rows that feed one token, in one product over the slots up to the highest one in use."""
    keys, values = layout.cache.layer(index)
    mask = layout.decode_mask(window)
    slots, kv_heads = mask.shape[0], keys.shape[1]
    query_NKGD = query_MHD[layout.node_N].unflatten(1, (kv_heads, -1))
    groups = query_NKGD.shape[2]
    query_BKRD = query_NKGD.new_zeros(slots, kv_heads, _tiled(groups), query_NKGD.shape[3])
    query_BKRD[layout.slot_N, :, :groups] = query_NKGD
    out = _weigh(query_BKRD, keys[:slots, :, : layout.size], values[:slots, :, : layout.size], mask, scale, softcap)
    return out[layout.slot_N, :, :groups].flatten(1, 2)


def _extend(
    layout: Layout, run: Run, index: int, query_THD: Tensor, scale: float, softcap: float | None, window: int | None
) -> Tensor:
    """Several new tokens of one slot (prompt, draft, replay); a head group's tokens share one product."""
    mask_TS = layout.run_mask(run, window)
    keys, values = (x[run.slot, :, : mask_TS.shape[1]] for x in layout.cache.layer(index))
    query_KGTD = query_THD.unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3)
    groups, length = query_KGTD.shape[1:3]
    rows = _tiled(groups * length)
    query_KRD = query_KGTD.new_zeros(keys.shape[0], rows, query_KGTD.shape[3])
    query_KRD[:, : groups * length] = query_KGTD.flatten(1, 2)
    mask_RS = torch.ones(rows, mask_TS.shape[1], dtype=torch.bool)
    mask_RS[: groups * length] = mask_TS.repeat(groups, 1)
    out_KRD = _weigh(query_KRD, keys, values, mask_RS, scale, softcap)
    return out_KRD[:, : groups * length].unflatten(1, (groups, length)).permute(2, 0, 1, 3).flatten(1, 2)


def _weigh(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """softmax(q k^T * scale) v: [..., R, D] over keys [..., S, D]; scores and softmax in float32."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scale)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores.masked_fill_(~mask, -math.inf), -1).to(values.dtype)
    out = torch.matmul(weights[..., :PIECE], values[..., :PIECE, :])
    for at in range(PIECE, values.shape[-2], PIECE):
        out = out + torch.matmul(weights[..., at : at + PIECE], values[..., at : at + PIECE, :])
    return out


def _mask(last: Tensor, size: int, window: int | None) -> Tensor:
    column = torch.arange(size)
    mask = column <= last[..., None]
    return mask if window is None else mask & (column > last[..., None] - window)


def _tiled(rows: int) -> int:
    return -(-rows // TILE) * TILE
