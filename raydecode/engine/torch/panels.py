"""Dense layers of `compile: true`: weights in panels of 16 outputs, as small as they can be without changing them.

    halves   two bytes a weight, where every weight is a bfloat16 (most checkpoints): computed in float32, exactly
    floats   four bytes, where one is not
    bytes    with `weights: int8`: W[o, :] = s[o] * integers in -127..127, s[o] = max |W[o, :]| / 127; activations are
             not rounded (`int8`, without `compile`, rounds them to 14 bits)

A row's sums run over the inputs in order, one sum per output: nothing of a row depends on how many there are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from raydecode.engine.torch.native import Weight, dense, pointer

PANEL = 16
FLOATS, HALVES, BYTES = 0, 1, 2


class PanelLinear(nn.Module):
    """y = x W^T + b; x float32. The weight exists in panels only. about: what the kernels are given."""

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Literal["full", "int8"] = "full") -> None:
        super().__init__()
        weight = weight.detach().float()
        outputs, inputs = weight.shape
        self.scale: Tensor | None = None
        if weights == "int8":
            self.scale = (weight.abs().amax(1) / 127).clamp_min(1e-30)
            kind, self.data = BYTES, _panels((weight / self.scale[:, None]).round_().to(torch.int8))
        elif torch.equal(halves := weight.to(torch.bfloat16), weight):
            panels_JKP = _panels(halves.view(torch.int16))  # outputs j and j + 8 of a panel share a word
            kind, self.data = HALVES, panels_JKP.unflatten(-1, (2, PANEL // 2)).transpose(-1, -2).contiguous()
        else:
            kind, self.data = FLOATS, _panels(weight)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.about = Weight(self.data.data_ptr(), pointer(self.scale), pointer(self.bias), inputs, outputs, kind)

    def forward(self, x: Tensor) -> Tensor:
        x_MD = x.flatten(0, -2).contiguous()
        y_MO = x_MD.new_empty(x_MD.shape[0], self.about.outputs)
        dense(self.about, x_MD, y_MO)
        return y_MO.unflatten(0, x.shape[:-1])


def _panels(weight_OK: Tensor) -> Tensor:
    """[panels, K, PANEL], zeros behind the last output."""
    outputs, inputs = weight_OK.shape
    whole = weight_OK.new_zeros(-(-outputs // PANEL) * PANEL, inputs)
    whole[:outputs] = weight_OK
    return whole.view(-1, PANEL, inputs).transpose(1, 2).contiguous()
