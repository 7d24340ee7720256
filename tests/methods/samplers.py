"""Samplers for tests: Mirostat 2 (the one with state), and twins that break one law each."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Columns, Needs, SamplerRows, StateColumns


class MirostatLike:
    """Mirostat 2 (arXiv:2007.14966): keep tokens less surprising than mu bits, move mu towards tau."""

    class Options(registry.Options):
        tau: float = Field(default=1.2, gt=0, le=20, description="target surprise, bits", examples=[1.2, 2.5])
        eta: float = Field(default=0.5, gt=0, le=2, description="learning rate", examples=[0.5])

    needs = Needs(own_logp=True)
    columns: StateColumns = {"mu": lambda options: 2 * options["tau"]}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        surprise_RC = -x_RC.double().log_softmax(1) / math.log(2)
        keep_RC = (surprise_RC <= rows.state("mu")[:, None]) | (x_RC == x_RC.amax(1, keepdim=True))
        return x_RC.masked_fill(~keep_RC, -math.inf)

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        error_R = -own_logp_R / math.log(2) - rows.option("tau").double()
        return {"mu": rows.state("mu") - rows.option("eta").double() * error_R}


class Stateless:
    """What the twins share: no needs, no state."""

    needs = Needs()
    columns: StateColumns = {}


class BatchMean(Stateless):
    """Twin: subtracts the mean of the whole batch, so that rows see each other."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC - x_RC[x_RC.isfinite()].mean()


class Reinflating(Stateless):
    """Twin: mixes with the uniform law, and so gives forbidden tokens a chance."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return (0.9 * x_RC.softmax(1) + 0.1 / x_RC.shape[1]).log()


class InPlace(Stateless):
    """Twin: writes into its input."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.mul_(0.5)


class Reordering(Stateless):
    """Twin: says that the likeliest token stays the likeliest, and takes it down."""

    keeps_best = True

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.where(x_RC < x_RC.amax(1, keepdim=True), x_RC - 100.0)


class Emptying(Stateless):
    """Twin: keeps tokens with probability above one half, or none at all."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.masked_fill(x_RC.softmax(1) <= 0.5, -math.inf)


class Restless(Stateless):
    """Twin: tosses torch's global coin."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC + torch.rand(())


class Doubling(Stateless):
    """Twin: answers in float64."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.double()


class NotQuiteIdentity(Stateless):
    """Twin: its identity rounds."""

    identity: dict = {}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return (x_RC * 3) / 3 + 1e-3


class Undescribed(Stateless):
    """Twin: an option without a description."""

    class Options(registry.Options):
        strength: float = 1.0

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.clone()


class Forgetful(MirostatLike):
    """Twin: its state follows the batch's mean surprise."""

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        return {"mu": rows.state("mu") + own_logp_R.mean()}


class Snooping(Stateless):
    """Twin: reads histories without saying so."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC + float(len(rows.history_R) * 0)


class Misbanded(Stateless):
    """Twin: its band leaves out the token at its lower edge."""

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC.masked_fill(x_RC < x_RC.amax(1, keepdim=True) - 1.0, -math.inf)

    def band(self, x_RC: Tensor, rows: SamplerRows) -> tuple[Tensor, None]:
        return x_RC.amax(1) - 0.9, None


class WidthMinded(Stateless):
    """Twin: says that it looks at logits alone, and compares with one over the number of columns."""

    any_width = True

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        best_R1, share_R1 = x_RC.amax(1, keepdim=True), x_RC.logsumexp(1, keepdim=True) - math.log(x_RC.shape[1])
        return x_RC.masked_fill(x_RC < share_R1.minimum(best_R1), -math.inf)


class Explosive(Stateless):
    """Raises, or answers NaN, for rows that ask for it; harmless for the others."""

    class Options(registry.Options):
        mode: str = Field(default="calm", description="calm, raise or nan", examples=["calm"])

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        modes = [options["mode"] for options in _options(rows)]
        if "raise" in modes:
            raise RuntimeError("boom")
        nan_R = torch.tensor([mode == "nan" for mode in modes])
        return x_RC.masked_fill(nan_R[:, None], math.nan)


def _options(rows: SamplerRows) -> list[dict]:
    """The option of text that `SamplerRows.option` cannot give as a number."""
    return [card.options for card in rows._cards] if hasattr(rows, "_cards") else rows.options  # type: ignore[attr-defined]


HONEST = (MirostatLike,)
TWINS = (
    BatchMean, Reinflating, InPlace, Reordering, Emptying, Restless, Doubling, NotQuiteIdentity, Undescribed,
    Forgetful, Snooping, Misbanded, WidthMinded, Explosive,
)  # fmt: skip
