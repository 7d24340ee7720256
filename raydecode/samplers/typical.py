"""Locally typical sampling (Meister et al., arXiv:2202.00666, section 4).

surprise(v) = -ln p(v);  H = sum_v p(v) surprise(v)  [nats]
Keep the smallest set with least |surprise - H| whose mass is >= p; equals at the cut all stay. The likeliest token is
not always among them: where H is high, it says too little. p = 1 is the identity.
Changes the distribution: yes. State: none. Cost: normaliser and entropy over V, and a partial selection.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import band_at_mass, normaliser_and_entropy, within


@registry.register("samplers", paper="arXiv:2202.00666")
class Typical:
    """Keep the tokens whose surprise is closest to the entropy, with mass p."""

    class Options(registry.Options):
        p: float = Field(gt=0, le=1, description="kept mass; 1 keeps all")

    needs = Needs()
    any_width = True
    columns: StateColumns = {}
    identity = {"p": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, Tensor]:
        lse_R, entropy_R = normaliser_and_entropy(x_RC)
        expected_R = (lse_R - entropy_R).to(x_RC.dtype)  # the logit with surprise H
        return band_at_mass(x_RC, lse_R, rows.option("p").double(), expected_R)
