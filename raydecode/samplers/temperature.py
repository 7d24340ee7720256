"""Temperature: x / T. T -> 0 is greedy (taken so below TINY), T = 1 the model's own law (Ackley et al., 1985).

Changes the distribution: yes, unless T = 1 (then bit for bit the identity). State: none. Cost: one pass over V.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns

TINY = 1e-6
"""Below it a gap of 1e-4 between two logits is 100 nats, and x / T may leave float32."""


@registry.register(
    "samplers", paper="Ackley, Hinton, Sejnowski 1985", vllm=registry.Vllm(stage=20, params={"value": "temperature"})
)
class Temperature:
    """Divide logits by a temperature."""

    class Options(registry.Options):
        value: float = Field(default=1.0, ge=0, le=100, description="temperature; 0 is greedy")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"value": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        value_R1 = rows.option("value")[:, None]
        zero_R = value_R1[:, 0] < TINY
        shaped = x_RC / value_R1.where(value_R1 >= TINY, value_R1.new_ones(()))
        if zero_R.any():
            best_R1 = x_RC.argmax(1, keepdim=True)
            point = x_RC.new_full(x_RC.shape, -math.inf).scatter_(1, best_R1, x_RC.gather(1, best_R1))
            shaped = shaped.where(~zero_R[:, None], point)
        return shaped
