"""Shared products and 8-bit weights: the function of the layers they replace, row by row, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from raydecode.engine.torch import TorchEngine, int8
from raydecode.engine.torch.int8 import Int8Linear
from raydecode.engine.torch.linear import PackedLinear, Sibling, Siblings, pack
from raydecode.errors import Refused, UserError
from tests.engine.torch.test_families import GROUPED

SIZES = 48, 16, 16


class Block(nn.Module):
    def __init__(self, bias: tuple[bool, ...] = (True, False, True)) -> None:
        super().__init__()
        for name, size, biased in zip(("q_proj", "k_proj", "v_proj"), SIZES, bias, strict=True):
            self.add_module(name, nn.Linear(40, size, bias=biased))
        self.o_proj = nn.Linear(48, 40)

    def parts(self, x: torch.Tensor, order: str = "qkv") -> list[torch.Tensor]:
        found = {name: getattr(self, f"{name}_proj")(x) for name in order}
        return [found[name] for name in "qkv"]


@pytest.fixture
def blocks() -> tuple[Block, Block]:
    """The same layers twice, the second packed."""
    torch.manual_seed(0)
    plain, packed = Block(), Block()
    packed.load_state_dict(plain.state_dict())
    assert pack(packed) == 0
    return plain, packed


@torch.inference_mode()
def test_siblings_are_their_layers_in_any_order(blocks: tuple[Block, Block]) -> None:
    plain, packed = blocks
    assert isinstance(packed.q_proj, Sibling)
    assert isinstance(packed.o_proj, PackedLinear)
    for rows in (1, 3, 17):
        x, other = torch.randn(2, rows, 40)
        for order in ("qkv", "vkq", "kqv"):
            for given in (x, other):
                for found, wanted in zip(packed.parts(given, order), plain.parts(given), strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # another tensor for every layer, and one tensor asked twice
    torch.testing.assert_close(packed.q_proj(x), plain.q_proj(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.k_proj(other), plain.k_proj(other), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.v_proj(x), plain.v_proj(x), rtol=1e-5, atol=1e-6)
    x.mul_(2)
    torch.testing.assert_close(packed.v_proj(x), plain.v_proj(x), rtol=1e-5, atol=1e-6)


def test_one_product_serves_all_and_nothing_stays() -> None:
    calls: list[torch.Tensor] = []

    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x)
            return torch.cat([x, x + 1], -1)

    siblings, x = Siblings(Product(), (4, 4)), torch.randn(2, 4)
    assert torch.equal(siblings.part(1, x), x + 1)
    assert torch.equal(siblings.part(0, x), x)
    assert len(calls) == 1
    assert siblings._given is None
    assert not siblings._parts
    siblings.part(0, x)
    assert len(calls) == 2


def test_layers_of_unequal_width_do_not_share() -> None:
    block = Block()
    block.v_proj = nn.Linear(24, 16)
    assert pack(block) == 0
    assert all(isinstance(layer, PackedLinear) for layer in block.children())


def exact(weight: torch.Tensor, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Weights rounded to 255 values per output, x to 2 * steps + 1 per row, the rest in float64."""
    scale = (weight.double().abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
    grid = (x.double().abs().amax(-1, keepdim=True) / steps).clamp_min(1e-30)
    return (x.double() / grid).round() * grid @ ((weight.double() / scale).round() * scale).t()


@torch.inference_mode()
def test_int8_is_the_formula_and_its_rows_are_alone() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 576) * torch.rand(96, 1), torch.randn(96)
    layer = Int8Linear(weight, bias)
    x = torch.randn(33, 576)
    x[5] *= 1e4
    x[7] = 0
    x[9, ::50] *= 100
    found = layer(x)
    wanted, coarse = (exact(weight, x, steps) for steps in (63 * 126, 63))
    size = x.abs().amax(-1, keepdim=True).double()
    error = ((found - bias).double() - wanted).abs() / size.clamp_min(1e-9)
    # both round x to 14 bits, one part in 7,938 of its largest; 576 such errors add up as random ones do, four sigmas
    assert error.max() < 4 * (576 / 6) ** 0.5 / (2 * 63 * 63) * weight.abs().mean()
    assert (coarse - wanted).abs().max() > 20 * (found - bias - wanted).abs().max(), "seven bits would do as well"
    assert torch.equal(found[7], bias)
    for rows in (1, 2, 3, 8, 32):
        assert torch.equal(layer(x[:rows]), found[:rows])
        assert torch.equal(layer(x[-rows:]), found[-rows:])
    assert torch.equal(layer(x[None]), found[None])
    spoiled = x.clone()
    spoiled[3, 4], spoiled[4, 4] = torch.nan, torch.inf
    again = layer(spoiled)
    assert not again[3:5].isfinite().any()
    assert torch.equal(again[5:], found[5:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_keeps_the_promise_and_stays_near(dtype: str, tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(hf.LlamaConfig(**GROUPED, attention_bias=True), getattr(torch, dtype))
    full, engine = (
        TorchEngine(folder, dtype=dtype, slots=4, max_length=100, options={"weights": kind, "compile": False})
        for kind in ("full", "int8")
    )
    assert engine.promise == "bitwise", engine.detail
    ids = [(37 * i + 11) % 300 + 5 for i in range(20)]
    a, b = (logits(one, ids) for one in (full, engine))
    assert 0 < float((a - b).abs().max()) < 0.25 * float(a.std())


def logits(engine: Any, ids: list[int]) -> torch.Tensor:
    from raydecode.contracts import Needs
    from raydecode.engine.lane import Chunk
    from raydecode.tree import TokenTree

    return engine.lane.forward([Chunk(0, 0, (), TokenTree.chain(ids))], Needs()).logits_MV


def test_refusals(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(hf.LlamaConfig(**GROUPED))
    with pytest.raises(UserError, match="nearest: int8"):
        TorchEngine(folder, options={"weights": "int-8"})
    monkeypatch.setattr(int8, "PRODUCT", "no_such_kernel")
    with pytest.raises(Refused, match="fbgemm"):
        TorchEngine(folder, options={"weights": "int8", "compile": False})
