"""Rows and logits for samplers without an engine: every shape of distribution that has broken one.

x_RV: float32 logits, R rows, V tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydecode.conformance.options import option_sets
from raydecode.contracts import Slope
from raydecode.numerics import normaliser
from raydecode.randomness import derive
from raydecode.registry import Method

DEPTH, WIDTH = 6, 16
"""Layers and width of the model that rows of a bench stand for."""


@dataclass(slots=True)
class BenchRows:
    """`contracts.SamplerRows` over plain lists. size: V; early logits are noise of (row key, site), beside no model."""

    options: Sequence[Mapping[str, Any]]
    states: Sequence[Mapping[str, float]]
    history_R: Sequence[Tensor]
    prompt_len_R: Sequence[int]
    keys_R: Sequence[int]
    size: int = 0

    @property
    def t_R(self) -> list[int]:
        pairs = zip(self.history_R, self.prompt_len_R, strict=True)
        return [history.numel() - length for history, length in pairs]

    def given(self, name: str) -> list[Any]:
        return [options[name] for options in self.options]

    @property
    def sites(self) -> Sequence[str]:
        return ("input", "embedding", *(f"layer.{i}" for i in range(DEPTH)), "final")

    def hidden(self, site: str) -> Tensor:
        return torch.stack([_noise(key, self.sites.index(site), WIDTH) for key in self.keys_R])

    def early_logits(self, site: str, index: Sequence[int], norm: bool) -> Tensor:
        salt = 2 * self.sites.index(site) + norm
        return torch.stack([_noise(self.keys_R[r], salt, self.size) for r in index])

    def slope(self, r: int, site: str, loss: Callable[[Tensor], Tensor], shift_D: Tensor | None = None) -> Slope:
        """Of a linear output layer on the row's hidden state."""
        with torch.enable_grad():
            weight_VD = _noise(self.sites.index(site), 7, self.size * WIDTH).view(self.size, WIDTH)
            x_D = self.hidden(site)[r] + (0.0 if shift_D is None else shift_D)
            logits_V = weight_VD @ x_D.requires_grad_()
            value = loss(logits_V)
            (gradient_D,) = torch.autograd.grad(value, x_D)
        return Slope(float(value.detach()), logits_V.detach(), gradient_D)

    def option(self, name: str) -> Tensor:
        return torch.tensor([options[name] for options in self.options], dtype=torch.float32)

    def normaliser(self, x_RC: Tensor) -> Tensor:
        return normaliser(x_RC)

    def state(self, name: str) -> Tensor:
        return torch.tensor([state[name] for state in self.states], dtype=torch.float64)

    def pick(self, index: Sequence[int]) -> BenchRows:
        """These rows, in this order."""
        return dataclasses.replace(
            self,
            options=[self.options[i] for i in index],
            states=[self.states[i] for i in index],
            history_R=[self.history_R[i] for i in index],
            prompt_len_R=[self.prompt_len_R[i] for i in index],
            keys_R=[self.keys_R[i] for i in index],
        )


def bench(method: Method, rows: int = 32, size: int = 257, seed: int = 1) -> tuple[Tensor, BenchRows]:
    """Logits and rows: the method's option sets in turn; sharp, flat, tied, masked and single-token distributions."""
    generator = torch.Generator().manual_seed(seed)
    x_RV = torch.randn(rows, size, generator=generator) * torch.logspace(-2, 1.3, rows)[:, None]
    for r in range(rows):
        match r % 8:
            case 1:  # ties, at the top too
                x_RV[r] = (x_RV[r] * 2).round() / 2
            case 2:  # a constraint
                x_RV[r, torch.rand(size, generator=generator) < 0.7] = -math.inf
                x_RV[r, r % size] = 0.25
            case 3:  # a constraint that leaves one token
                x_RV[r] = torch.full((size,), -math.inf).index_fill_(0, torch.tensor([(7 * r) % size]), -3.0)
            case 4:  # flat
                x_RV[r] = 1.5
            case 5:  # far from zero
                x_RV[r] += 300.0 if r % 16 == 5 else -300.0
    sets = option_sets(method)
    columns = method.factory().columns
    options = [sets[r % len(sets)] for r in range(rows)]
    states = [{name: float(start(own)) for name, start in columns.items()} for own in options]
    lengths = torch.randint(1, 12, (rows, 2), generator=generator).tolist()
    history = [torch.randint(0, size, (a + b - 1,), generator=generator) for a, b in lengths]
    keys = torch.randint(0, 1 << 62, (rows,), generator=generator).tolist()
    return x_RV, BenchRows(options, states, history, [a for a, _ in lengths], keys, size)


def _noise(key: int, salt: int, count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(derive(key, salt) >> 1))
