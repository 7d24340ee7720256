"""Mirostat 2 (Basu et al., arXiv:2007.14966; the authors' second version): cut by surprise, steer the cut to tau bits.

    keep v with S(v) = -log2 p(v) <= mu, and always the likeliest;  draw v;  mu <- mu - eta (S(v) - tau);  mu_1 = 2 tau
Hence exactly: mean S - tau = (mu_1 - mu_(T+1)) / (eta T). p is the law at this stage, before its cut: after constraints
and the stages before, so tau is a mean surprise under the constrained law. (llama.cpp measures S after the cut:
another controller.)
Report: the mean surprise; collapsed, the share of tokens with S > mu: only the likeliest was left, and even it was too
surprising; saturated, the share at mu >= 28 bits, where the cut removes V 2^-mu < 0.001 of the mass: tau is above what
the model itself says per token, and mu runs away.
Changes the distribution: yes. State: mu, two counts. Cost: the normaliser over V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Columns, Needs, SamplerRows, StateColumns
from raydecode.numerics import RUNAWAY_BITS, exact, mean_surprise, steer, within

ROUNDING_BITS = 1e-4
"""The cut is made in float32; a token this close to mu may have passed it."""


@registry.register("samplers", paper="arXiv:2007.14966")
class Mirostat2:
    """Keep tokens less surprising than mu bits, and move mu so that the mean surprise comes to tau bits."""

    class Options(registry.Options):
        tau: float = Field(default=3.0, gt=0, le=20, description="target surprise, bits per token")
        eta: float = Field(default=1.0, gt=0, le=2, description="learning rate; small ones need long texts")

    needs = Needs(own_logp=True)
    keeps_best = any_width = True
    columns: StateColumns = {
        "mu": lambda options: 2 * options["tau"],
        "collapsed": lambda _: 0,
        "saturated": lambda _: 0,
    }

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return within(x_RC, *self.band(x_RC, rows))

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        cut_R = rows.normaliser(x_RC) - rows.state("mu") * math.log(2)
        return cut_R.to(x_RC.dtype).minimum(x_RC.amax(1)), None

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        mu_R, surprise_R = rows.state("mu"), -own_logp_R / math.log(2)
        return {
            "mu": steer(mu_R, surprise_R, *(exact(rows.given(name), mu_R) for name in ("tau", "eta"))),
            "collapsed": rows.state("collapsed") + (surprise_R > mu_R + ROUNDING_BITS),
            "saturated": rows.state("saturated") + (mu_R >= RUNAWAY_BITS),
        }

    def report(self, options: Mapping[str, Any], state: Mapping[str, float], count: int) -> dict[str, Any]:
        shares = {name: state[name] / count for name in ("collapsed", "saturated")}
        mean = mean_surprise(options["tau"], options["eta"], state["mu"], count)
        return {"mean_surprise_bits": mean, "mu_bits": state["mu"], **shares}
