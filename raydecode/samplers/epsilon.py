"""Epsilon sampling (Hewitt et al., arXiv:2210.15191, section 4.1): keep tokens with probability >= epsilon.

The likeliest token always stays. In logits: x >= min(logsumexp(x) + ln epsilon, max(x)). epsilon = 0 is the identity.
Changes the distribution: yes. State: none. Cost: the normaliser over V.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import normaliser, within


@registry.register("samplers", paper="arXiv:2210.15191")
class Epsilon:
    """Keep tokens with probability at least epsilon."""

    class Options(registry.Options):
        epsilon: float = Field(ge=0, lt=1, description="least probability; 3e-4 to 9e-4 in the paper, 0 keeps all")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"epsilon": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        floor_R = normaliser(x_RC, fine=False) + rows.option("epsilon").double().log()
        return floor_R.to(x_RC.dtype).minimum(x_RC.amax(1)), None
