"""Top-k sampling (Fan et al., arXiv:1805.04833, section 5.4): keep the k likeliest tokens; equals at the cut all stay.

Changes the distribution: yes. State: none. Cost: one partial selection over V per row.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import kth_largest, within


@registry.register("samplers", paper="arXiv:1805.04833", vllm=registry.Vllm(stage=40, params={"k": "top_k"}))
class TopK:
    """Keep the k likeliest tokens."""

    class Options(registry.Options):
        k: int = Field(ge=1, description="how many tokens stay; more than the vocabulary keeps all")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"k": 1 << 20}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        return kth_largest(x_RC, rows.option("k").long().clamp(max=x_RC.shape[1])), None
