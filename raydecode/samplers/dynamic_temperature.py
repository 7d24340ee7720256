"""Dynamic temperature (kalomaze 2023, as in koboldcpp and llama.cpp): hotter where the model hesitates.

x / T,  T = low + (high - low) * (H / ln n)^exponent;  H the entropy in nats, n the number of finite logits.
low = high = 1 is the identity; a row with one finite logit stays as it is.
Changes the distribution: yes. State: none. Cost: normaliser and entropy over V.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import normaliser_and_entropy


@registry.register("samplers", paper="koboldcpp and llama.cpp, 2023")
class DynamicTemperature:
    """Divide logits by a temperature that grows with the entropy."""

    class Options(registry.Options):
        low: float = Field(default=0.5, ge=0.01, le=100, description="temperature where one token is certain")
        high: float = Field(default=1.5, ge=0.01, le=100, description="temperature where all are equally likely")
        exponent: float = Field(default=1.0, gt=0, le=10, description="above 1: rises late; below 1: early")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"low": 1.0, "high": 1.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        low_R, high_R = rows.option("low"), rows.option("high")
        count_R = low_R.new_full((len(x_RC),), x_RC.shape[1])
        if bool(torch.isinf(x_RC.amin())):
            count_R = (x_RC > -math.inf).sum(1)
        share_R = normaliser_and_entropy(x_RC)[1] / count_R.clamp(min=2).log()
        rise_R = share_R.clamp(0, 1).pow(rows.option("exponent").double()).to(x_RC.dtype)
        value_R = (low_R + (high_R - low_R) * rise_R).where(count_R > 1, low_R.new_ones(()))
        return x_RC / value_R[:, None]
