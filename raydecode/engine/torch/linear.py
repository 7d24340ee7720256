"""Dense layers on packed weights: oneDNN reorders a float32 weight once into its own blocks.

Two reasons. Law: the packed product's row is the same bits for every number of rows (1 to 700), place among them and
1 or 2 threads; MKL's, which `nn.Linear` calls, changes below 4 rows. Speed (one thread, AVX2, 49152 x 576, ms):

    rows       1     8    32
    packed   8.9  14.1  31.9
    MKL     10.7  25.4  54.1        and MKL must be given 8 rows where 1 is meant

Where oneDNN cannot pack (bfloat16 on processors without AVX-512), the layer stays as it is and the call is padded.
Layers that are given the same tensor (query, key, value; gate, up) are one product: see `Siblings`.
With `weights: int8` the products are those of `int8`; with `compile: true` those of `panels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from raydecode.engine.torch.int8 import Int8Linear
from raydecode.engine.torch.layout import TILE
from raydecode.engine.torch.panels import PanelLinear


class PackedLinear(nn.Module):
    """y = x W^T + b. The weight exists in packed form only, so nothing else may read it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return cast(Tensor, Product.apply(x, self.packed, self.bias))
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Product(torch.autograd.Function):
    """The packed product with a backward pass: x's gradient, by a weight that is unpacked for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.packed.to_dense(), None, None


class Siblings:
    """Dense layers in one product. Whoever asks first has it made; the others are handed their part.

    Every layer returns its own x W^T + b whatever the caller does: a part is handed out once, and only for the very
    tensor that the product was made from.
    """

    def __init__(self, product: nn.Module, sizes: Sequence[int]) -> None:
        self.product, self._sizes = product, list(sizes)
        self._given: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def part(self, index: int, x: Tensor) -> Tensor:
        if x is not self._given or index not in self._parts:
            self._given, self._parts = x, dict(enumerate(self.product(x).split(self._sizes, -1)))
        part = self._parts.pop(index)
        if not self._parts:
            self._given = None  # nothing is kept from one call to the next
        return part


class Sibling(nn.Module):
    """One of `Siblings`, in the place of the layer it was."""

    def __init__(self, siblings: Siblings, index: int) -> None:
        super().__init__()
        self.siblings, self._index = siblings, index

    def forward(self, x: Tensor) -> Tensor:
        return self.siblings.part(self._index, x)


SHARING = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
"""Names of layers that families give one tensor; where they are given several, sharing only costs time."""

Weights = Literal["full", "int8"]


@torch.inference_mode()
def pack(
    model: nn.Module,
    weights: Weights = "full",
    sharing: Sequence[tuple[str, ...]] = SHARING,
    compiled: bool = False,
) -> int:
    """Replace dense layers by packed ones, each old weight freed before the next is packed; how many stayed plain.

    sharing: names of layers that become `Siblings` where a module has all of them. compiled: in `panels`.

    A tied output layer is packed beside the embedding that it shared: vocabulary x width floats more.
    """
    plain = 0
    for parent in list(model.modules()):
        dense = {name: child for name, child in parent.named_children() if _is_dense(child)}
        for names in [*sharing, *((name,) for name in dense)]:
            layers = [dense[name] for name in names if name in dense]
            if len(layers) < len(names) or len({_weight(layer).shape[1] for layer in layers}) > 1:
                continue
            kinds = {(_weight(layer).dtype, _weight(layer).device.type) for layer in layers}
            if weights == "full" and not all(packs(*kind) for kind in kinds):
                plain += len(names) == 1
                continue
            sizes = [len(_weight(layer)) for layer in layers]
            product = _joined(layers, weights, compiled)
            siblings = Siblings(product, sizes)
            for index, name in enumerate(names):
                setattr(parent, name, Sibling(siblings, index) if len(names) > 1 else product)
                del dense[name]
    return plain


def _is_dense(layer: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return type(layer) in (nn.Linear, Conv1D)


def _weight(layer: nn.Module) -> Tensor:
    """[out, in]; GPT-2's Conv1D stores it transposed."""
    weight = cast(Tensor, layer.weight)
    return weight if type(layer) is nn.Linear else weight.t()


def _joined(layers: Sequence[nn.Module], weights: Weights, compiled: bool) -> nn.Module:
    """One product whose output is the layers' outputs side by side."""
    biases = [cast(Tensor | None, layer.bias) for layer in layers]
    weight = torch.cat([_weight(layer) for layer in layers]) if len(layers) > 1 else _weight(layers[0])
    bias: Tensor | None = None
    if any(one is not None for one in biases):
        bias = torch.cat([
            weight.new_zeros(len(_weight(layer))) if one is None else one
            for layer, one in zip(layers, biases, strict=True)
        ])  # fmt: skip
    if compiled:
        return PanelLinear(weight, bias, weights)
    return Int8Linear(weight, bias) if weights == "int8" else PackedLinear(weight, bias)


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
