"""Attention over ragged rows with a paged cache, in a form whose bits depend on the row's own path alone.

Installed as a transformers attention function, so every model family that uses that interface runs on it.
Scores and weights are explicit (softmax(q k^T) v) because the fused kernel's bits depend on how many queries it sees:

 - rows of a product come in multiples of TILE: smaller or odd counts take other kernels (float32, measured on AVX2)
 - the weighted sum runs page by page, added in the order of the text: a longer batch mate then only adds exact zeros.
   One product over all keys splits its sum by their number (192 against 256 keys differed in 54 of 54 cases of a probe)

Legend: M nodes of the call, N those that share products, J pages of one product, T query nodes per page, H heads, K key
heads, G = H/K heads per key head, R query rows of one product, D head size, O pages of the longest row, S = O * PAGE.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from raydecode.engine.torch.cache import PAGE
from raydecode.engine.torch.family import refusal
from raydecode.engine.torch.layout import TILE, Layout, Span
from raydecode.engine.torch.paths import Paths

if TYPE_CHECKING:
    from raydecode.engine.torch.slope import PlainAttention
    from raydecode.engine.torch.weights import Watch

NAME = "raydecode"


class Bias(Protocol):
    """What is added to scores by the distance of a node from a column."""

    def of(self, position_N: Tensor, columns: int) -> Tensor:
        """float32 [N, H, columns]"""
        ...


HARMLESS = frozenset({
    "position_ids", "cache_position", "position_embeddings", "is_causal", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict",
})  # fmt: skip
"""What families pass along and ours need not know; anything else might change the result."""

current: ContextVar[Layout | Paths | PlainAttention] = ContextVar("layout")
"""The layout of the forward in progress; the attention function has no other way to get it."""

watching: ContextVar[Watch | None] = ContextVar("watch", default=None)
"""Who reads attention weights of the forward in progress."""


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
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    if not isinstance(layout, Layout | Paths):
        return layout.attend(query, key, value, scale, softcap, sliding_window), None
    query_MHD, key_MKD, value_MKD = (x[0].transpose(0, 1) for x in (query, key, value))
    layout.cache.write(index, layout.page_M, layout.offset_M, key_MKD[: layout.size], value_MKD[: layout.size])
    if watch := watching.get():
        watch.see(index, query_MHD, scale, softcap, sliding_window)
    if isinstance(layout, Paths):
        return layout.attend(index, query_MHD, scale, softcap, sliding_window)[None], None
    return weigh(layout, index, query_MHD, scale, softcap, sliding_window)[None], None


def weigh(
    layout: Layout, index: int, query_MHD: Tensor, scale: float, softcap: float | None = None,
    window: int | None = None, bias: Bias | None = None,
) -> Tensor:  # fmt: skip
    """[M, H, D]: what the nodes of a call see of the pages that its layout names; zeros behind them (padding)."""
    few_NHD = _few(layout, index, query_MHD, scale, softcap, window, bias) if layout.longest else None
    if few_NHD is not None and layout.alone and len(few_NHD) == len(query_MHD):
        return few_NHD
    out_MHD = query_MHD.new_zeros(*query_MHD.shape[:2], layout.cache.layer(index)[1].shape[-1])
    if few_NHD is not None:
        out_MHD[layout.few] = few_NHD
    for span in layout.spans:
        query_THD = query_MHD[span.first : span.end]
        out_MHD[span.first : span.end] = _span(layout, span, index, query_THD, scale, softcap, window, bias)
    return out_MHD


def _few(
    layout: Layout, index: int, query_MHD: Tensor, scale: float, softcap: float | None, window: int | None,
    bias: Bias | None,
) -> Tensor:  # fmt: skip
    """Few tokens of many rows: one product per segment of pages, over all rows that hold a page."""
    keys, values = layout.cache.layer(index)
    heads, pages = query_MHD.shape[1], layout.longest
    products = layout.products(keys.shape[1], heads // keys.shape[1])
    query = query_MHD.reshape(-1, query_MHD.shape[-1])
    scores = [
        torch.bmm(query.index_select(0, one.query_X).unflatten(0, (-1, one.rows)), one.pages(keys).transpose(1, 2))
        for one in products.segments
    ]
    whole = torch.cat([found.flatten(0, 1) for found in scores]) if len(scores) > 1 else scores[0].flatten(0, 1)
    scores_N1HS = whole.index_select(0, products.score_Y).view(-1, 1, heads, pages * PAGE)
    add = bias.of(layout.last_N, pages * PAGE)[:, None] if bias else None
    weights = _softmax(scores_N1HS, layout.hidden_few(window), scale, softcap, add).to(values.dtype).view(-1, PAGE)
    parts = values.new_zeros(products.score_Y.numel() + 1, values.shape[-1])
    for one in products.segments:
        weights_XRS = weights.index_select(0, one.weight_X).unflatten(0, (-1, one.rows))
        parts.index_copy_(0, one.part_X, torch.bmm(weights_XRS, one.pages(values)).flatten(0, 1))
    return _in_order(parts[:-1].view(pages, -1, heads, parts.shape[-1]).unbind(0))


def _span(
    layout: Layout,
    span: Span,
    index: int,
    query_THD: Tensor,
    scale: float,
    softcap: float | None,
    window: int | None,
    bias: Bias | None,
) -> Tensor:
    """Many tokens of one row: a head group's tokens share one product over the row's pages."""
    keys, values = (pool[span.page_J].transpose(0, 1) for pool in layout.cache.layer(index))  # [K, J, PAGE, D]
    query_KGTD = query_THD.unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3)
    heads, length = query_KGTD.shape[1:3]
    query_KRD = pad(query_KGTD.flatten(1, 2), (0, 0, 0, -(heads * length) % TILE))
    scores_KRS = torch.matmul(query_KRD, keys.flatten(1, 2).transpose(-1, -2))
    hidden_RS = layout.hidden_span(span, heads, query_KRD.shape[1], window)
    add = None
    if bias:
        add_HTS = bias.of(layout.position_M[span.first : span.end], scores_KRS.shape[2]).transpose(0, 1)
        add = pad(add_HTS.reshape(len(query_KRD), heads * length, -1), (0, 0, 0, -(heads * length) % TILE))
    weights_KRJP = _softmax(scores_KRS, hidden_RS, scale, softcap, add).to(values.dtype).unflatten(2, (-1, PAGE))
    out_KRD = _in_order([torch.matmul(weights_KRJP[:, :, j], values[:, j]) for j in range(values.shape[1])])
    return out_KRD[:, : heads * length].unflatten(1, (heads, length)).permute(2, 0, 1, 3).flatten(1, 2)


def _softmax(scores: Tensor, hidden: Tensor, scale: float, softcap: float | None, add: Tensor | None = None) -> Tensor:
    """In float32 over the last dimension."""
    scores = scores.float().mul_(scale)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if add is not None:
        scores = scores + add
    return torch.softmax(scores.masked_fill_(hidden, -math.inf), -1)


def _in_order(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Their sum, the first two first: what a text's pages add up to must not depend on how many there are in all."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
