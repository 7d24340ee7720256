"""Logit bias (OpenAI API reference): add a number to the logits of named tokens.

x[v] + bias[v], nats; -100 forbids in effect, +100 forces. An empty bias is the identity.
Changes the distribution: yes. State: none. Cost: the named tokens.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.errors import RowError

Id = Annotated[int, Field(ge=0)]
Nats = Annotated[float, Field(ge=-100, le=100)]


@registry.register("samplers", paper="OpenAI API reference", vllm=registry.Vllm(stage=5, params={"bias": "logit_bias"}))
class LogitBias:
    """Add a number to the logits of named tokens."""

    class Options(registry.Options):
        bias: dict[Id, Nats] = Field(
            description="token id: nats, -100 to 100", examples=[{"1": 2.5, "3": -100.0}, {}, {"0": 100.0, "2": 0.5}]
        )

    needs = Needs()
    columns: StateColumns = {}
    identity: dict = {"bias": {}}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped, size = x_RC.clone(), x_RC.shape[1]
        for r, bias in enumerate(rows.given("bias")):
            if bias:
                foreign = next((id for id in bias if id >= size), None)
                if foreign is not None:
                    raise RowError("sampler", "BadToken", f"bias: token {foreign} is not in a vocabulary of {size}")
                nats = torch.tensor(list(bias.values()), dtype=x_RC.dtype, device=x_RC.device)
                shaped[r, torch.tensor(list(bias))] += nats
        return shaped
