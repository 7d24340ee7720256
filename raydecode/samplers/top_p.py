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

SELECT = 256
"""Tokens tried before a full sort: a nucleus of a trained model at p <= 0.95 is rarely wider."""


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
        if best_RK.shape[1] < x_RC.shape[1]:
            for r in (~found_R).nonzero()[:, 0].tolist():
                row = x_RC[r : r + 1].sort(dim=1, descending=True).values
                cut_R[r] = _cut(row, lse_R1[r : r + 1], p_R[r : r + 1])[0][0]
        cut_R = cut_R.masked_fill(p_R >= 1, -math.inf)
        return x_RC.masked_fill(x_RC < cut_R[:, None], -math.inf)


def _cut(sorted_RK: Tensor, lse_R1: Tensor, p_R: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the last token in the nucleus, and whether the K given tokens reach its mass."""
    mass_RK = (sorted_RK - lse_R1).double().exp().cumsum(1)
    reached_RK = mass_RK >= p_R[:, None]
    found_R = reached_RK[:, -1]
    last_R = reached_RK.int().argmax(1).masked_fill(~found_R, sorted_RK.shape[1] - 1)
    return sorted_RK.gather(1, last_R[:, None])[:, 0], found_R
