"""DoLa, decoding by contrasting layers (Chuang et al., arXiv:2309.03883, equations 1 to 5).

    q_N = softmax of the logits;  q_j = softmax of the output layer on an early layer's hidden state, j in the bucket
    M = argmax over j of JSD(q_N || q_j)          the layer that disagrees most, per row and step
    F(x) = ln q_N(x) - ln q_M(x) where q_N(x) >= alpha max q_N, else -inf

Layers are counted as there: 0 is the embedding, j the output of the j-th layer, N not among them; buckets hold every
second one. The paper sends early states through the output layer without the final norm; `norm` puts it between.
All laws are restricted to the tokens that constraints and earlier stages left. The authors' code and the one for
transformers differ from the paper in two ways: JSD from KL(mean || q) instead of KL(q || mean), and one layer for the
whole batch, by its mean; here each row has its own. The paper adds a repetition penalty of 1.2 behind it, because the
contrast likes what was just said. Early layers of small models may say little: measure before use.

Changes the distribution: yes. State: none. Cost: the output layer once per bucket layer, for the rows that ask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns

FEW = 40
"""Up to this many layers buckets are the lower and the upper half, above it the first and the last 20 (the paper's)."""


@registry.register("samplers", paper="arXiv:2309.03883")
class Dola:
    """Contrast the last layer with the early layer that disagrees most (DoLa)."""

    class Options(registry.Options):
        layers: Literal["low", "high"] | tuple[int, ...] = Field(
            default="high",
            description="bucket of early layers: low, high, or their numbers",
            examples=["low", "high", [0, 3]],
        )
        alpha: float = Field(default=0.1, gt=0, le=1, description="least share of the likeliest token's probability")
        norm: bool = Field(default=False, description="put the final norm before the output layer")

    needs = Needs()
    columns: StateColumns = {}

    @staticmethod
    def needs_of(options: Mapping[str, Any], sites: Sequence[str]) -> Needs:
        """The bucket's sites; a layer that is not there is refused by its site's name."""
        return Needs(hidden=tuple(_site(j) for j in _bucket(options["layers"], _depth(sites))))

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        depth, count = _depth(rows.sites), len(x_RC)
        chosen = [_bucket(layers, depth) for layers in rows.given("layers")]
        norm_R = rows.given("norm")
        last_RC = x_RC.log_softmax(1)
        best_R, early_RC = x_RC.new_full((count,), -math.inf), torch.zeros_like(x_RC)
        for j in sorted({j for bucket in chosen for j in bucket}):
            for norm in sorted({norm_R[r] for r in range(count) if j in chosen[r]}):
                index = [r for r in range(count) if j in chosen[r] and norm_R[r] == norm]
                x_GC = rows.early_logits(_site(j), index, norm).masked_fill(x_RC[index].isneginf(), -math.inf)
                q_GC = x_GC.log_softmax(1)
                jsd_G = _divergence(last_RC[index], q_GC)
                more = (jsd_G > best_R[index]).nonzero()[:, 0].tolist()
                where = [index[g] for g in more]
                best_R[where], early_RC[where] = jsd_G[more], q_GC[more]
        plausible_RC = last_RC >= last_RC.amax(1, keepdim=True) + rows.option("alpha").log()[:, None]
        return (last_RC - early_RC).masked_fill(~plausible_RC, -math.inf)


def _divergence(p_GC: Tensor, q_GC: Tensor) -> Tensor:
    """Jensen-Shannon, nats, of two log-laws with one support. A running sum: its bits are the row's own."""
    mean_GC = torch.logaddexp(p_GC, q_GC) - math.log(2)
    gap_GC = p_GC.exp() * (p_GC - mean_GC) + q_GC.exp() * (q_GC - mean_GC)
    return gap_GC.nan_to_num(0.0).double().cumsum(1)[:, -1].float() / 2  # -inf less -inf: a token of neither law


def _depth(sites: Sequence[str]) -> int:
    return sum(site.startswith("layer.") for site in sites)


def _site(j: int) -> str:
    return f"layer.{j - 1}" if j else "embedding"


def _bucket(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """Candidate layers of a model of `depth` layers. Without any it is the embedding, a site that is then refused."""
    half = depth // 2 if depth <= FEW else None
    if layers == "low":
        return tuple(range(0, half or 20, 2)) if depth > 1 else (0,)
    if layers == "high":
        return tuple(range(half if half is not None else depth - 20, depth, 2)) or (0,)
    return tuple(int(j) for j in layers)
