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
from raydecode.randomness import coin


@registry.register("samplers", paper="text-generation-webui, 2024")
class Xtc:
    """Now and then drop the likely tokens, all but the least likely of them."""

    class Options(registry.Options):
        threshold: float = Field(default=0.1, ge=0.001, le=1, description="probability of a likely token; > 0.5: off")
        probability: float = Field(default=0.5, ge=0, le=1, description="how often, per token")

    needs = Needs()
    columns: StateColumns = {}
    identity = {"probability": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        tossed = [coin(key, t) for key, t in zip(rows.keys_R, rows.t_R, strict=True)]
        wanted = zip(tossed, rows.option("probability").tolist(), strict=True)
        hits = [r for r, (toss, often) in enumerate(wanted) if toss < often]
        hit = torch.tensor(hits, dtype=torch.int64, device=x_RC.device)
        if not hit.numel():
            return x_RC.clone()
        whole = hit.numel() == x_RC.shape[0]
        x_GC, threshold_G1 = (x_RC if whole else x_RC[hit]), rows.option("threshold")[hit, None]
        most = min(int(1 / float(threshold_G1.min())) + 1, x_RC.shape[1])  # more cannot reach the threshold
        best_GK = x_GC.topk(most, dim=1).values
        count_G1 = (best_GK - x_GC.logsumexp(1, keepdim=True) >= threshold_G1.log()).sum(1, keepdim=True)
        least_G1 = best_GK.gather(1, (count_G1 - 1).clamp(min=0))
        shaped_GC = x_GC.masked_fill((x_GC > least_G1) & (count_G1 > 1), -math.inf)
        return shaped_GC if whole else x_RC.index_copy(0, hit, shaped_GC)
