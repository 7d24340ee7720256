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
from raydecode.numerics import blocks, grid_sum_, scratch, within


@registry.register("samplers", name="top_n_sigma", paper="arXiv:2411.07641")
class TopNSigma:
    """Keep tokens whose logit is within n standard deviations of the largest."""

    class Options(registry.Options):
        n: float = Field(default=1.0, ge=0, le=1e6, description="standard deviations below the largest logit")

    needs = Needs()
    keeps_best = any_width = True
    columns: StateColumns = {}
    identity = {"n": 1e6}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        return x_RC.amax(1) - rows.option("n") * _deviation(x_RC), None


def _deviation(x_RC: Tensor) -> Tensor:
    """float32 [R]: of the finite logits. Distances are taken from the largest down: small wherever the logits lie."""
    out_R = x_RC.new_empty(len(x_RC))
    off_BC, term_BC = scratch(x_RC, torch.float32, torch.float64)
    for rows in blocks(x_RC):
        x_BC, best_B1 = x_RC[rows], x_RC[rows].amax(1, keepdim=True)
        off, term = off_BC[: len(x_BC)], term_BC[: len(x_BC)]
        torch.sub(x_BC, best_B1, out=off)
        gone_BC = torch.isinf(off) if bool(torch.isinf(off.amin())) else None
        count_B1: Tensor | int = x_BC.shape[1]
        if gone_BC is not None:
            count_B1 = (~gone_BC).sum(1, keepdim=True)
            off.masked_fill_(gone_BC, 0.0)
        mean_B1 = grid_sum_(term.copy_(off), -off.amin(1, keepdim=True))[:, None] / count_B1
        off.sub_(mean_B1.to(off.dtype))
        if gone_BC is not None:
            off.masked_fill_(gone_BC, 0.0)
        most_B1 = off.square_().amax(1, keepdim=True)
        out_R[rows] = (grid_sum_(term.copy_(off), most_B1)[:, None] / count_B1)[:, 0].sqrt_()
    return out_R
