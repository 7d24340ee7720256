"""Frequency penalty (OpenAI API reference): subtract for each time a token occurs in the output.

x[v] - value * (how often v occurs in the output); the prompt does not count. value = 0 is the identity.
Changes the distribution: yes. State: none (history). Cost: the distinct tokens of the output per row.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns


@registry.register(
    "samplers", paper="OpenAI API reference", vllm=registry.Vllm(stage=12, params={"value": "frequency_penalty"})
)
class FrequencyPenalty:
    """Make tokens of the output less likely: subtract for each time a token occurs in the output."""

    class Options(registry.Options):
        value: float = Field(default=0.0, ge=-10, le=10, description="nats; negative encourages, 0 changes nothing")

    needs = Needs(history=True)
    columns: StateColumns = {}
    identity = {"value": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped = x_RC.clone()
        inputs = zip(rows.option("value").tolist(), rows.history_R, rows.prompt_len_R, strict=True)
        for r, (value, history, prompt_len) in enumerate(inputs):
            output = history[prompt_len:]
            seen, count = output.unique(return_counts=True)
            shaped[r, seen] -= value * count.to(x_RC.device)
        return shaped
