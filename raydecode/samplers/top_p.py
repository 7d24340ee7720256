"""Nucleus (top-p) sampling (Holtzman et al., arXiv:1904.09751, equation 2).

Keep the smallest set of likeliest tokens whose mass is >= p; equals at the cut all stay (so the set does not depend on
how a sort breaks ties). Changes the distribution: yes. State: none.
Cost: the normaliser over V and a partial selection; rows whose nucleus is wider than the selection are sorted in full,
with the same bits (`numerics.band_at_mass`).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import band_at_mass, normaliser, within


@registry.register("samplers", paper="arXiv:1904.09751", vllm=registry.Vllm(stage=50, params={"p": "top_p"}))
class TopP:
    """Keep the smallest set of likeliest tokens with mass p (the nucleus)."""

    class Options(registry.Options):
        p: float = Field(gt=0, le=1, description="kept mass; 1 keeps all")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"p": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        return band_at_mass(x_RC, normaliser(x_RC, fine=False), rows.option("p").double())[0], None
