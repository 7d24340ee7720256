"""Eta sampling (Hewitt et al., arXiv:2210.15191, section 4.2): epsilon sampling that yields where the entropy is high.

eta = min(epsilon, sqrt(epsilon) * exp(-H)), H in nats; keep tokens with p >= eta, and always the likeliest.
epsilon = 0 is the identity. Changes the distribution: yes. State: none. Cost: normaliser and entropy over V.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import normaliser_and_entropy, within


@registry.register("samplers", paper="arXiv:2210.15191")
class Eta:
    """Keep tokens with probability at least eta, which falls with the entropy."""

    class Options(registry.Options):
        epsilon: float = Field(ge=0, lt=1, description="eta where the entropy is low; 3e-4 to 4e-3 in the paper")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"epsilon": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        lse_R, entropy_R = normaliser_and_entropy(x_RC)
        floor_R = rows.option("epsilon").double().log()
        eta_R = floor_R.minimum(floor_R / 2 - entropy_R)  # ln eta
        return (lse_R + eta_R).to(x_RC.dtype).minimum(x_RC.amax(1)), None
