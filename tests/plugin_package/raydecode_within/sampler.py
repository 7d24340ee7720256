"""Keep the tokens within `nats` of the likeliest: min-p with p = exp(-nats), for people who think in log-probability.

x >= max(x) - nats. Changes the distribution: yes. State: none. Cost: one maximum over V per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows

if TYPE_CHECKING:
    from torch import Tensor


@registry.register("samplers")
class Within:
    """Keep tokens within some nats of the likeliest."""

    class Options(registry.Options):
        nats: float = Field(default=3.0, ge=0, le=100, description="distance in log-probability")

    needs = Needs()
    columns = {}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        import math  # an optional import would stand here: scanning plug-ins must not pay for it

        cut_R1 = x_RC.amax(1, keepdim=True) - rows.option("nats")[:, None]
        return x_RC.masked_fill(x_RC < cut_R1, -math.inf)
