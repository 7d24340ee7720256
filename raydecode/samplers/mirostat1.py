"""Mirostat 1 (Basu et al., arXiv:2007.14966, algorithm 1): top-k sampling whose k keeps the mean surprise at tau bits.

Of the likeliest m = 100 tokens (fewer where a constraint left fewer), with p_1 >= p_2 >= ...:
    t_i = ln((i+1)/i);  b_i = ln(p_i/p_(i+1));  s = sum t_i b_i / sum t_i^2      Zipf exponent, least squares
    e = s - 1;  k = ((e 2^mu) / (1 - V^-e))^(1/s), rounded, from 1 to V          e -> 0: e / (1 - V^-e) -> 1 / ln V
    keep the k likeliest (equals at the cut all stay), draw v, then
    S = -log2 p(v), p before the cut;  mu <- mu - eta (S - tau);  mu_1 = 2 tau
Hence exactly: mean S - tau = (mu_1 - mu_(T+1)) / (eta T). p is the law at this stage: after constraints and the stages
before. A flat law (s <= 0) keeps all.
Report: the mean surprise; collapsed, the share of tokens at mu <= 0, where k is 1; saturated, the share at mu >= 28
bits: tau is above what the model itself says per token, and mu runs away.
Changes the distribution: yes. State: mu, two counts. Cost: two selections over V, and the normaliser for S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Columns, Needs, SamplerRows, StateColumns
from raydecode.numerics import RUNAWAY_BITS, exact, kth_largest, largest, mean_surprise, steer, within

RANKS = 100


@registry.register("samplers", paper="arXiv:2007.14966")
class Mirostat1:
    """Keep the k likeliest tokens, k such that the mean surprise comes to tau bits (Zipf's law inverted)."""

    class Options(registry.Options):
        tau: float = Field(default=3.0, gt=0, le=20, description="target surprise, bits per token")
        eta: float = Field(default=1.0, gt=0, le=2, description="learning rate; small ones need long texts")

    needs = Needs(own_logp=True)
    keeps_best = True
    columns: StateColumns = {
        "mu": lambda options: 2 * options["tau"],
        "collapsed": lambda _: 0,
        "saturated": lambda _: 0,
    }

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        size = x_RC.shape[1]
        best_RK = largest(x_RC, RANKS)
        k_R = rank(best_RK.double(), rows.state("mu"), size)
        cut_R = best_RK.gather(1, (k_R - 1).clamp(max=best_RK.shape[1] - 1)[:, None])[:, 0]
        wide = ((k_R > best_RK.shape[1]) & (k_R < size)).nonzero()[:, 0]
        if wide.numel():
            cut_R[wide] = kth_largest(x_RC if len(wide) == len(x_RC) else x_RC[wide], k_R[wide])
        return cut_R.masked_fill(k_R >= size, -math.inf), None

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        mu_R = rows.state("mu")
        surprise_R = -own_logp_R / math.log(2)
        return {
            "mu": steer(mu_R, surprise_R, *(exact(rows.given(name), mu_R) for name in ("tau", "eta"))),
            "collapsed": rows.state("collapsed") + (mu_R <= 0),
            "saturated": rows.state("saturated") + (mu_R >= RUNAWAY_BITS),
        }

    def report(self, options: Mapping[str, Any], state: Mapping[str, float], count: int) -> dict[str, Any]:
        shares = {name: state[name] / count for name in ("collapsed", "saturated")}
        mean = mean_surprise(options["tau"], options["eta"], state["mu"], count)
        return {"mean_surprise_bits": mean, "mu_bits": state["mu"], **shares}


def rank(best_RK: Tensor, mu_R: Tensor, size: int) -> Tensor:
    """int64 [R]: the paper's k for sorted logits (float64, -inf behind a constraint) and mu in bits."""
    i_K = torch.arange(1, best_RK.shape[1], dtype=torch.float64, device=best_RK.device)
    t_RK = ((i_K + 1) / i_K).log() * torch.isfinite(best_RK[:, 1:])
    b_RK = (best_RK[:, :-1] - best_RK[:, 1:]).where(torch.isfinite(best_RK[:, 1:]), 0.0)
    s_R = (t_RK * b_RK).cumsum(1)[:, -1] / t_RK.square().cumsum(1)[:, -1] if len(i_K) else best_RK.new_zeros(len(mu_R))
    e_R = s_R - 1
    flat_R = e_R.abs() < 1e-6
    safe_R = e_R.masked_fill(flat_R, 1.0)
    scale_R = (safe_R / -torch.expm1(-safe_R * math.log(size))).log()
    scale_R = scale_R.where(~flat_R, -math.log(math.log(max(size, 3))))
    k_R = ((mu_R * math.log(2) + scale_R) / s_R).clamp(0.0, math.log(size)).exp().round()
    return k_R.where(s_R > 0, float(size)).long().clamp(1, size)
