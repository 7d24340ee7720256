"""Min-p sampling (Nguyen et al., arXiv:2407.01082): keep tokens with probability >= p times the likeliest one's.

In logits: x >= max(x) + ln p. Changes the distribution: yes. State: none. Cost: one maximum over V per row.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import within


@registry.register("samplers", paper="arXiv:2407.01082", vllm=registry.Vllm(stage=30, params={"p": "min_p"}))
class MinP:
    """Keep tokens at least p times as likely as the likeliest."""

    class Options(registry.Options):
        p: float = Field(ge=0, le=1, description="share of the likeliest token's probability; 0 keeps all")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"p": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        return x_RC.amax(1) + rows.option("p").log(), None
