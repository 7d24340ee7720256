"""Epsilon sampling (Hewitt et al., arXiv:2210.15191, section 4.1): keep tokens with probability >= epsilon.

The likeliest token always stays. In logits: x >= min(logsumexp(x) + ln epsilon, max(x)). epsilon = 0 is the identity.
Changes the distribution: yes. State: none. Cost: the normaliser over V.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import drop_below


@registry.register("samplers", paper="arXiv:2210.15191")
class Epsilon:
    """Keep tokens with probability at least epsilon."""

    class Options(registry.Options):
        epsilon: float = Field(ge=0, lt=1, description="least probability; 3e-4 to 9e-4 in the paper, 0 keeps all")

    needs = Needs()
    keeps_best = True
    columns: StateColumns = {}
    identity = {"epsilon": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        cut_R = (x_RC.logsumexp(1) + rows.option("epsilon").log()).minimum(x_RC.amax(1))
        return drop_below(x_RC, x_RC, cut_R)
