"""Greedy decoding: keep the likeliest token (the lowest id on ties).

Changes the distribution: yes, to a point. State: none. Cost: one argmax over V per row.
"""

from __future__ import annotations

import math

from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns


@registry.register("samplers", vllm=registry.Vllm(stage=20, fixed={"temperature": 0.0}))
class Greedy:
    """Keep the likeliest token."""

    needs = Needs()
    keeps_best = settles = any_width = True
    columns: StateColumns = {}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        best_R1 = x_RC.argmax(1, keepdim=True)
        return x_RC.new_full(x_RC.shape, -math.inf).scatter_(1, best_R1, x_RC.gather(1, best_R1))
