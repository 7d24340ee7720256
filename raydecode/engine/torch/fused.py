"""One call per decoder layer (`compile: true`), for families whose layers are of the Llama form.

    a = x + W_o attention(rope(norm(x) W_qkv))      y = a + W_down (silu(g) * u),  (g, u) = norm(a) W_gate_up

with biases, a sliding window and norms of queries and keys where a family has them. Other families keep transformers'
own layers, with dense layers and attention by the kernels. The layer stays the module it was, so hooks see its input
and output.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn

from raydecode.engine.torch.attention import current
from raydecode.engine.torch.linear import Sibling
from raydecode.engine.torch.native import Layer, native, pointer
from raydecode.engine.torch.panels import PanelLinear
from raydecode.engine.torch.paths import Paths

FAMILIES = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
SILU = frozenset({"SiLU", "SiLUActivation"})


def fuse(model: nn.Module) -> int:
    """Give packed layers of FAMILIES one call each; how many."""
    count = 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module).__name__ in FAMILIES and type(module.mlp.act_fn).__name__ in SILU:
            module.forward = FusedLayer(module)
            count += 1
    return count


class FusedLayer:
    """The forward of one layer. The layer's own modules hold the weights."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.size = attention.layer_idx, attention.head_dim
        window = getattr(attention, "sliding_window", None)
        if type(layer).__name__ == "MistralDecoderLayer":
            window = getattr(attention.config, "sliding_window", None)
        self.held = [
            _product(attention.q_proj), _product(attention.o_proj), _product(mlp.gate_proj), _product(mlp.down_proj),
        ]  # fmt: skip
        qkv, out, gate_up, down = (one.about for one in self.held)
        self.heads = out.inputs // self.size
        self.keys = (qkv.outputs // self.size - self.heads) // 2
        norms = layer.input_layernorm, layer.post_attention_layernorm
        names = ("q_norm", "k_norm")
        self.weights = [*(one.weight for one in norms), *(getattr(attention, n, None) for n in names)]
        self.weights = [getattr(one, "weight", one) for one in self.weights]
        self.about = Layer(
            qkv, out, gate_up, down, *map(pointer, self.weights), self.heads, window or 0,
            norms[0].variance_epsilon, attention.scaling,
        )  # fmt: skip
        self.scratch: int = native().raydecode_scratch(byref(self.about))

    def __call__(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **others: object
    ) -> Tensor:
        paths = current.get()
        assert isinstance(paths, Paths)
        x_MD = hidden_states[0].contiguous()
        cos_MD, sin_MD = (one[0].contiguous() for one in position_embeddings)
        y_MD = torch.empty_like(x_MD)
        pool = paths.pool(self.index, self.keys, self.size, self.size, x_MD)
        native().raydecode_layer(
            byref(self.about), byref(paths.about), byref(pool), x_MD.data_ptr(), cos_MD.data_ptr(), sin_MD.data_ptr(),
            y_MD.data_ptr(), paths.scratch(x_MD.shape[0] * self.scratch).data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y_MD[None]


def _product(layer: Any) -> PanelLinear:
    """The whole product that a layer is, or is a part of."""
    whole = layer.siblings.product if isinstance(layer, Sibling) else layer
    assert isinstance(whole, PanelLinear)
    return whole
