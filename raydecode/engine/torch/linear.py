"""Dense layers on packed weights: oneDNN reorders a float32 weight once into its own blocks.

Two reasons. Law: the packed product's row is the same bits for every number of rows (1 to 700), place among them and
1 or 2 threads; MKL's, which `nn.Linear` calls, changes below 4 rows. Speed (one thread, AVX2, 49152 x 576, ms):

    rows       1     8    32
    packed   8.9  14.1  31.9
    MKL     10.7  25.4  54.1        and MKL must be given 8 rows where 1 is meant

Where oneDNN cannot pack (bfloat16 on processors without AVX-512), the layer stays as it is and the call is padded.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from raydecode.engine.torch.layout import TILE


class PackedLinear(nn.Module):
    """y = x W^T + b. The weight exists in packed form only, so nothing else may read it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@torch.inference_mode()
def pack(model: nn.Module) -> int:
    """Replace dense layers by packed ones, each old weight freed before the next is packed; how many stayed plain.

    A tied output layer is packed beside the embedding that it shared: vocabulary x width floats more.
    """
    from transformers.pytorch_utils import Conv1D

    plain = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, Conv1D):
                continue
            weight, bias = cast(Tensor, child.weight), cast(Tensor | None, child.bias)
            if type(child) is Conv1D:  # GPT-2's dense layer, stored transposed
                weight = weight.t()
            if packs(weight.dtype, weight.device.type):
                setattr(parent, name, PackedLinear(weight, bias))
            else:
                plain += 1
    return plain


def padding(rows: int, dtype: torch.dtype, packed: bool) -> int:
    """Rows to add to a call so that its products' bits depend on each row alone.

    Packed: none needed; above TILE still to its multiple, because oneDNN builds a kernel per row count (0.6 ms each).
    Plain: float32 to a multiple of TILE. bfloat16 only changes at one row, and on AVX2 each row costs the same again.
    """
    if packed:
        return -rows % TILE if rows > TILE else 0
    return -rows % TILE if dtype == torch.float32 else max(2 - rows, 0)


def packs(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether `pack` packs weights of this dtype there."""
    return device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
