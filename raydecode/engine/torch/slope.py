"""Gradients through the model: one row's path run again, differentiably, from one hidden state on.

    f(shift) = loss(logits behind the path's last token, its hidden state at `site` being x + shift)
    gives f, those logits, and df/dshift [D]

The path is read from its first token, by the model's own layers and a plain causal attention, with the row's
interventions at their sites; the cache is neither read nor written. So the result is a function of the path alone,
rows that do not ask keep their bits, and nothing has to be undone. The logits are the engine's up to rounding.
What the layers make of earlier tokens is constant: only the last token's state is shifted.
Cost: a reading of the whole path per call, and its layers behind the site once more, backwards.

Dense layers are packed, which has no backward pass of its own: `linear.Product` unpacks a weight while it needs it.
Methods that want this: gradients of a loss on activations, Plug and Play (Dathathri et al., arXiv:1912.02164, section
3.2), and recoding, a step on a hidden state that lowers the entropy of what comes next.

Legend: T tokens of the path, H heads, K key heads, G = H/K, D width or head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raydecode.contracts import Slope
from raydecode.engine.lane import Hook
from raydecode.engine.torch import attention
from raydecode.engine.torch.sites import Sites
from raydecode.errors import RowError


class PlainAttention:
    """Causal attention of one sequence over itself, in the place of a cache's layout."""

    def attend(
        self, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, scale: float, softcap: float | None,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        """[1, T, H, D]."""
        length = query_1HTD.shape[2]
        query_KGTD = query_1HTD[0].unflatten(0, (key_1KTD.shape[1], -1))
        scores_KGTT = (query_KGTD @ key_1KTD[0].transpose(1, 2)[:, None]).float() * scale
        if softcap:
            scores_KGTT = torch.tanh(scores_KGTT / softcap) * softcap
        away_TT = torch.arange(length)[:, None] - torch.arange(length)
        hidden_TT = (away_TT < 0) if window is None else (away_TT < 0) | (away_TT >= window)
        weights = scores_KGTT.masked_fill(hidden_TT.to(scores_KGTT.device), -math.inf).softmax(-1)
        out_KGTD = weights.to(value_1KTD.dtype) @ value_1KTD[0][:, None]
        return out_KGTD.flatten(0, 1).transpose(0, 1)[None]


def slope(
    inside: Sites, ids: Sequence[int], size: int, site: str, loss: Callable[[Tensor], Tensor], hooks: Sequence[Hook],
    shift_D: Tensor | None,
) -> Slope:  # fmt: skip
    """See `contracts.SamplerRows.slope`. size: tokens of the vocabulary; hooks: the row's interventions on the path."""
    model, leaf = inside.model, []

    def shifted(x_MD: Tensor) -> Tensor:
        x_D = x_MD[0].detach().clone()
        leaf.append((x_D if shift_D is None else x_D + shift_D.to(x_D)).requires_grad_())
        return leaf[0][None]

    acting = [*hooks, Hook(site, (len(ids) - 1,), shifted)]
    token = attention.current.set(PlainAttention())
    try:
        with torch.inference_mode(False), torch.enable_grad(), inside.open((), acting, ()):
            logits_V = model(
                input_ids=torch.tensor([list(ids)], device=model.device), attention_mask=None, use_cache=False,
                position_ids=torch.arange(len(ids), device=model.device)[None], logits_to_keep=1,
            ).logits[0, -1, :size].float()  # fmt: skip
            value = loss(logits_V)
            if value.dim() or not value.requires_grad:
                what = f"loss gave {tuple(value.shape)}: it owes one number made from the logits"
                raise RowError("sampler", "BadLoss", what)
            (gradient_D,) = torch.autograd.grad(value, leaf)
    finally:
        attention.current.reset(token)
    return Slope(float(value.detach()), logits_V.detach(), gradient_D)
