"""XTC, exclude top choices (p-e-w 2024, text-generation-webui pull request 6335): now and then, not the obvious.

With probability `probability` per token: of the tokens with p >= threshold drop all but the least likely (which stays,
with its equals). Where fewer than two reach the threshold nothing is dropped, so a certain token is never lost.
The coin is keyed by the row and the output index (stream COIN). probability = 0 is the identity.
Changes the distribution: yes. State: none. Cost: the normaliser over V and a selection of 1/threshold tokens, for the
rows whose coin says so.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import largest, normaliser, within
from raydecode.randomness import coin


@registry.register("samplers", paper="text-generation-webui, 2024")
class Xtc:
    """Now and then drop the likely tokens, all but the least likely of them."""

    class Options(registry.Options):
        threshold: float = Field(default=0.1, ge=0.001, le=1, description="probability of a likely token; > 0.5: off")
        probability: float = Field(default=0.5, ge=0, le=1, description="how often, per token")

    needs = Needs()
    any_width = True
    columns: StateColumns = {}
    identity = {"probability": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, Tensor]:
        low_R, high_R = (x_RC.new_full((len(x_RC),), edge) for edge in (-math.inf, math.inf))
        tossed = [coin(key, t) for key, t in zip(rows.keys_R, rows.t_R, strict=True)]
        wanted = zip(tossed, rows.option("probability").tolist(), strict=True)
        hits = [r for r, (toss, often) in enumerate(wanted) if toss < often]
        if hits:
            hit = torch.tensor(hits, dtype=torch.int64, device=x_RC.device)
            x_GC = x_RC if len(hits) == len(x_RC) else x_RC[hit]
            threshold_G1 = rows.option("threshold")[hit, None]
            best_GK = largest(x_GC, int(1 / float(threshold_G1.min())) + 1)  # more cannot reach the threshold
            likely_GK = best_GK.double() - normaliser(x_GC, fine=False)[:, None] >= threshold_G1.double().log()
            count_G1 = likely_GK.sum(1, keepdim=True)
            least_G1 = best_GK.gather(1, (count_G1 - 1).clamp(min=0))
            high_R[hit] = least_G1.where(count_G1 > 1, math.inf)[:, 0]
        return low_R, high_R
