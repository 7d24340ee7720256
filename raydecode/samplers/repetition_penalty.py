"""Repetition penalty (Keskar et al., CTRL, arXiv:1909.05858, section 4.1).

Logits of tokens already in prompt or output: x / value if x > 0, else x * value. value = 1 is the identity.
Changes the distribution: yes. State: none (history). Cost: the distinct tokens of the history per row.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns


@registry.register(
    "samplers", paper="arXiv:1909.05858", vllm=registry.Vllm(stage=10, params={"value": "repetition_penalty"})
)
class RepetitionPenalty:
    """Make tokens of prompt and output less likely, by a factor."""

    class Options(registry.Options):
        value: float = Field(default=1.0, gt=0, le=10, description="factor; 1 changes nothing")

    needs = Needs(history=True)
    columns: StateColumns = {}
    identity = {"value": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped = x_RC.clone()
        for r, (value, history) in enumerate(zip(rows.option("value").tolist(), rows.history_R, strict=True)):
            seen = history.unique()
            x = x_RC[r, seen]
            shaped[r, seen] = (x / value).where(x > 0, x * value)
        return shaped
