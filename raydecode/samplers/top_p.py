"""Nucleus (top-p) sampling (Holtzman et al., arXiv:1904.09751, equation 2).

Keep the smallest set of likeliest tokens whose mass is >= p; equals at the cut all stay (so the set does not depend on
how a sort breaks ties). Changes the distribution: yes. State: none.
Cost: the normaliser over V and a partial selection; rows whose nucleus is wider than the selection are sorted in full.
Both paths give the same bits: probabilities use the exact normaliser, and a running sum's prefix is its own.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns

SELECT, WIDER = 256, 4096
"""Tokens tried before a full sort: a nucleus of a trained model at p <= 0.95 is rarely wider than the first. One row of
49,152 on one AVX2 thread: 0.2 ms, 0.9 ms, and 3.7 ms for the sort.
"""


@registry.register("samplers", paper="arXiv:1904.09751", vllm=registry.Vllm(stage=50, params={"p": "top_p"}))
class TopP:
    """Keep the smallest set of likeliest tokens with mass p (the nucleus)."""

    class Options(registry.Options):
        p: float = Field(gt=0, le=1, description="kept mass; 1 keeps all")

    needs = Needs()
    columns: StateColumns = {}
    identity = {"p": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        p_R = rows.option("p").double()
        lse_R1 = x_RC.logsumexp(1, keepdim=True)
        best_RK = x_RC.topk(min(SELECT, x_RC.shape[1]), dim=1).values
        cut_R, found_R = _cut(best_RK, lse_R1, p_R)
        found_R |= p_R >= 1  # kept whole below
        for width in (WIDER, x_RC.shape[1]):
            if best_RK.shape[1] < width <= x_RC.shape[1] and not bool(found_R.all()):
                index = (~found_R).nonzero()[:, 0]
                x_GC = x_RC[index]
                whole = width == x_RC.shape[1]
                best_GK = x_GC.sort(1, descending=True).values if whole else x_GC.topk(width, dim=1).values
                cut_R[index], found_R[index] = _cut(best_GK, lse_R1[index], p_R[index])
        cut_R = cut_R.masked_fill(p_R >= 1, -math.inf)
        return x_RC.masked_fill(x_RC < cut_R[:, None], -math.inf)


def _cut(sorted_RK: Tensor, lse_R1: Tensor, p_R: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the last token in the nucleus, and whether the K given tokens reach its mass."""
    mass_RK = (sorted_RK - lse_R1).double().exp().cumsum(1)
    reached_RK = mass_RK >= p_R[:, None]
    found_R = reached_RK[:, -1]
    last_R = reached_RK.int().argmax(1).masked_fill(~found_R, sorted_RK.shape[1] - 1)
    return sorted_RK.gather(1, last_R[:, None])[:, 0], found_R
