"""Top-n-sigma (Tang et al., arXiv:2411.07641): keep tokens whose logit is within n standard deviations of the largest.

x >= max(x) - n * sigma, sigma the standard deviation (of the population) of the finite logits. The set is the same at
every temperature before it. Changes the distribution: yes. State: none. Cost: two sums over V.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns
from raydecode.numerics import drop_below, row_sum


@registry.register("samplers", name="top_n_sigma", paper="arXiv:2411.07641")
class TopNSigma:
    """Keep tokens whose logit is within n standard deviations of the largest."""

    class Options(registry.Options):
        n: float = Field(default=1.0, ge=0, le=1e6, description="standard deviations below the largest logit")

    needs = Needs()
    keeps_best = True
    columns: StateColumns = {}
    identity = {"n": 1e6}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        best_R1 = x_RC.amax(1, keepdim=True)
        down_RC = best_R1 - x_RC  # from the largest down: small numbers however far from zero the logits are
        gone_RC = torch.isinf(down_RC)
        if bool(gone_RC.any()):
            down_RC.masked_fill_(gone_RC, 0.0)
        count_R = (~gone_RC).sum(1)
        mean_R = row_sum(down_RC) / count_R
        off_RC = (down_RC - mean_R[:, None].to(x_RC.dtype)).masked_fill_(gone_RC, 0.0).square_()
        sigma_R = (row_sum(off_RC) / count_R).sqrt().to(x_RC.dtype)
        cut_R = best_R1[:, 0] - rows.option("n") * sigma_R
        return drop_below(x_RC, x_RC, cut_R)
