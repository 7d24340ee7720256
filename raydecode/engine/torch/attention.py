"""Attention over ragged rows with a slot cache, in a form whose bits depend on the row alone.

Installed as a transformers attention function, so every model family that uses that interface runs on it.
Scores and weights are explicit (softmax(q k^T) v) because the fused kernel's bits depend on how many queries it sees:

 - rows of a product come in multiples of TILE: smaller or odd counts take other kernels (float32, measured on AVX2)
 - keys come in multiples of BLOCK, and the weighted sum runs in pieces of PIECE keys added in order: a longer batch
   mate then only adds exact zeros. One product over all keys splits its sum by their number (192 against 256 keys
   differed in 54 of 54 cases of a probe; pieces of 128: 0).

Legend: M nodes of all rows, N rows that feed one token, H heads, K key heads, G = H/K heads per key head,
R query rows of one product, D head size, S keys, T new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from raydecode.engine.torch.cache import Cache, rounded
from raydecode.engine.torch.family import refusal

NAME = "raydecode"
TILE, PIECE = 8, 128
SPARE, OVERHEAD = 1.5, 1024
"""A shared product may read SPARE times the keys it needs, and OVERHEAD more: what a product of its own would cost."""

HARMLESS = frozenset({
    "position_ids", "cache_position", "position_embeddings", "is_causal", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict",
})  # fmt: skip
"""What families pass along and ours need not know; anything else might change the result."""


@dataclass(frozen=True, slots=True)
class Run:
    """New tokens of one slot: nodes first..first+length of the call, at columns start..start+length."""

    slot: int
    start: int
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that feed one token and share a product: neighbouring slots of like length.

    nodes: their places in the call; offsets: their slots less `low`; size: keys read, a multiple of BLOCK
    """

    low: int
    high: int
    size: int
    nodes: Tensor
    offsets: Tensor
    last: Tensor

    @property
    def dense(self) -> bool:
        """Every slot between the lowest and the highest is one of them."""
        return self.nodes.numel() == self.high - self.low


@dataclass(slots=True)
class Layout:
    """Where the nodes of one call lie: the same for all layers. `masks` are made once per window."""

    cache: Cache
    runs: Sequence[Run]
    slot_M: Tensor = field(init=False)
    column_M: Tensor = field(init=False)
    many: list[Run] = field(init=False)
    groups: list[Group] = field(init=False)
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slot_M = torch.tensor([run.slot for run in self.runs for _ in range(run.length)])
        self.column_M = torch.tensor([run.start + i for run in self.runs for i in range(run.length)])
        self.many = [run for run in self.runs if run.length > 1]
        self.groups = grouped([run for run in self.runs if run.length == 1])

    def hidden_from_group(self, group: Group, window: int | None) -> Tensor:
        """bool [slots, 1, 1, S], True = not attended to; slots that feed nothing look at column 0."""
        if (-1 - group.low, window) not in self.masks:
            last = torch.zeros(group.high - group.low, dtype=torch.int64)
            last[group.offsets] = group.last
            self.masks[-1 - group.low, window] = _hidden(last, group.size, window)[:, None, None]
        return self.masks[-1 - group.low, window]

    def hidden_from_run(self, run: Run, copies: int, rows: int, window: int | None) -> Tensor:
        """bool [rows, S], True = not attended to: `copies` times the run's tokens, then padding that sees all."""
        if (run.slot, window) not in self.masks:
            hidden_TS = _hidden(
                torch.arange(run.start, run.start + run.length), rounded(run.start + run.length), window
            )
            padding = hidden_TS.new_zeros(rows - copies * run.length, hidden_TS.shape[1])
            self.masks[run.slot, window] = torch.cat([*[hidden_TS] * copies, padding])
        return self.masks[run.slot, window]


def grouped(ones: Sequence[Run]) -> list[Group]:
    """Split rows by slot so that the keys read are at most SPARE times those needed, plus OVERHEAD per call saved."""
    parts: list[list[Run]] = []
    needed = 0
    for run in sorted(ones, key=lambda run: run.slot):
        size = rounded(run.start + 1)
        if parts:
            part = parts[-1]
            longest = max(size, *(rounded(r.start + 1) for r in part))
            if longest * (run.slot + 1 - part[0].slot) <= SPARE * (needed + size) + OVERHEAD:
                part.append(run)
                needed += size
                continue
        parts.append([run])
        needed = size
    return [
        Group(
            part[0].slot,
            part[-1].slot + 1,
            max(rounded(run.start + 1) for run in part),
            torch.tensor([run.first for run in part]),
            torch.tensor([run.slot - part[0].slot for run in part]),
            torch.tensor([run.start for run in part]),
        )
        for part in parts
    ]


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
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, M', D], key and value [1, K, M', D] -> [1, M', H, D].

    M' >= M: the call is padded to a multiple of TILE; padding nodes come out as zeros and are not stored.
    """
    strange = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    if strange:
        raise refusal(type(module).__name__, f"gives attention a '{strange[0]}', which is not known here")
    layout, index = current.get(), cast(int, module.layer_idx)
    query_MHD, key_MKD, value_MKD = (x[0].transpose(0, 1) for x in (query, key, value))
    count = layout.slot_M.numel()
    layout.cache.write(index, layout.slot_M, layout.column_M, key_MKD[:count], value_MKD[:count])
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    out_MHD = query_MHD.new_zeros(query_MHD.shape[0], query_MHD.shape[1], value.shape[-1])
    for group in layout.groups:
        out_MHD[group.nodes] = _decode(layout, group, index, query_MHD[group.nodes], scale, softcap, sliding_window)
    for run in layout.many:
        end = run.first + run.length
        out_MHD[run.first : end] = _extend(
            layout, run, index, query_MHD[run.first : end], scale, softcap, sliding_window
        )
    return out_MHD[None], None


def _decode(
    layout: Layout, group: Group, index: int, query_NHD: Tensor, scale: float, softcap: float | None, window: int | None
) -> Tensor:
    """Rows that feed one token, in one product over their slots."""
    keys, values = (x[group.low : group.high, :, : group.size] for x in layout.cache.layer(index))
    query_NKGD = query_NHD.unflatten(1, (keys.shape[1], -1))
    heads = query_NKGD.shape[2]
    query_NKRD = pad(query_NKGD, (0, 0, 0, -heads % TILE))
    if not group.dense:
        query_NKRD = query_NKRD.new_zeros(keys.shape[0], *query_NKRD.shape[1:]).index_copy(0, group.offsets, query_NKRD)
    out = _weigh(query_NKRD, keys, values, layout.hidden_from_group(group, window), scale, softcap)[:, :, :heads]
    return (out if group.dense else out[group.offsets]).flatten(1, 2)


def _extend(
    layout: Layout, run: Run, index: int, query_THD: Tensor, scale: float, softcap: float | None, window: int | None
) -> Tensor:
    """Several new tokens of one slot (prompt, draft, replay); a head group's tokens share one product."""
    size = rounded(run.start + run.length)
    keys, values = (x[run.slot, :, :size] for x in layout.cache.layer(index))
    query_KGTD = query_THD.unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3)
    heads, length = query_KGTD.shape[1:3]
    query_KRD = pad(query_KGTD.flatten(1, 2), (0, 0, 0, -(heads * length) % TILE))
    hidden_RS = layout.hidden_from_run(run, heads, query_KRD.shape[1], window)
    out_KRD = _weigh(query_KRD, keys, values, hidden_RS, scale, softcap)
    return out_KRD[:, : heads * length].unflatten(1, (heads, length)).permute(2, 0, 1, 3).flatten(1, 2)


def _weigh(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float, softcap: float | None) -> Tensor:
    """softmax(q k^T * scale) v: [..., R, D] over keys [..., S, D]; scores and softmax in float32."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scale)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores.masked_fill_(hidden, -math.inf), -1).to(values.dtype)
    out = torch.matmul(weights[..., :PIECE], values[..., :PIECE, :])
    for at in range(PIECE, values.shape[-2], PIECE):
        out = out + torch.matmul(weights[..., at : at + PIECE], values[..., at : at + PIECE, :])
    return out


def _hidden(last: Tensor, size: int, window: int | None) -> Tensor:
    """True where column > last, or outside the window that ends there."""
    column = torch.arange(size)
    hidden = column > last[..., None]
    return hidden if window is None else hidden | (column <= last[..., None] - window)
