"""Kernels of `compile`: the formulas, rows that are alone, transformers' logits on every form of layer, the draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from raydecode import randomness
from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch import TorchEngine, native
from raydecode.engine.torch import lane as lane_module
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.torch.layout import Run
from raydecode.engine.torch.panels import BYTES, FLOATS, HALVES, PanelLinear
from raydecode.engine.torch.paths import Paths
from raydecode.errors import Refused, UserError
from raydecode.tree import TokenTree
from tests.engine.torch.builds import builds
from tests.engine.torch.test_families import FAMILIES, GROUPED, follows_transformers
from tests.engine.torch.test_linear import exact

pytestmark = builds
KINDS = {"halves": HALVES, "floats": FLOATS, "bytes": BYTES}
FUSED = {"llama", "llama_biased_tied", "qwen2", "qwen3", "mistral_sliding", "rope_yarn"}


def layer(kind: str, outputs: int, inputs: int, bias: bool) -> tuple[PanelLinear, torch.Tensor]:
    torch.manual_seed(outputs)
    weight = torch.randn(outputs, inputs) * torch.rand(outputs, 1)
    weight = weight.bfloat16().float() if kind == "halves" else weight
    made = PanelLinear(weight, torch.randn(outputs) if bias else None, "int8" if kind == "bytes" else "full")
    assert made.about.kind == KINDS[kind]
    return made, weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs", "bias"), [(96, 576, True), (50, 40, False), (7, 3, True)])
@torch.inference_mode()
def test_a_dense_layer_is_the_formula_and_its_rows_are_alone(kind: str, outputs: int, inputs: int, bias: bool) -> None:
    made, weight = layer(kind, outputs, inputs, bias)
    x = torch.randn(101, inputs)
    found = made(x)
    if kind == "bytes":
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / scale).round() * scale
    wanted = x.double() @ weight.double().t() + (0 if made.bias is None else made.bias)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    for rows in (*range(1, 14), 47, 48, 49):
        assert torch.equal(made(x[:rows]), found[:rows]), rows
        assert torch.equal(made(x[-rows:]), found[-rows:]), rows
    assert torch.equal(made(x[None, :, None])[0, :, 0], found)


@torch.inference_mode()
def test_halves_are_the_floats_they_stand_for() -> None:
    made, weight = layer("halves", 33, 70, False)
    odd = torch.cat([weight, torch.full((1, 70), 0.1)])
    whole = PanelLinear(odd, None)
    assert (made.about.kind, whole.about.kind) == (HALVES, FLOATS)
    assert made.data.numel() * made.data.element_size() * 2 == whole.data.numel() * 4
    x = torch.randn(5, 70)
    assert torch.equal(made(x), whole(x)[:, :33])


@torch.inference_mode()
def test_bytes_keep_the_activations() -> None:
    """The twin that rounds them to 14 bits, as `weights: int8` alone does, is further off."""
    made, weight = layer("bytes", 96, 576, False)
    x = torch.randn(9, 576)
    whole = exact(weight, x, 1 << 30)
    ours, rounded = ((found - whole).abs().max() for found in (made(x).double(), exact(weight, x, 63 * 126)))
    assert ours < rounded / 3


@pytest.mark.parametrize("family", [*sorted(FUSED), "gemma2", "gpt2", "gpt_neox", "phi", "olmo2", "mixtral"])
def test_logits_are_transformers_own(family: str, tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(FAMILIES[family]())
    lane = TorchLane(folder, dtype="float32", slots=3, context=64, compiled=True)
    assert lane.fused == (3 if family in FUSED else 0)
    follows_transformers(lane, folder)


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}])
@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma2"])
def test_the_promise_is_kept(family: str, options: dict[str, Any], tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(FAMILIES[family]())
    engine = TorchEngine(folder, dtype="float32", slots=4, max_length=100, options={"compile": True, **options})
    assert engine.promise == "bitwise", engine.detail


@pytest.fixture
def lane(tiny_folder: Callable[..., Path]) -> TorchLane:
    return TorchLane(tiny_folder(hf.LlamaConfig(**GROUPED)), dtype="float32", slots=3, context=126, compiled=True)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


IDS = [(37 * i + 11) % 300 + 5 for i in range(90)]


def logits(lane: TorchLane, ids: list[int] = IDS) -> torch.Tensor:
    found = lane.forward([Chunk(0, 0, tuple(ids[:-20]), TokenTree.chain(ids[-20:]))], Needs()).logits_MV.clone()
    lane.release(0)
    return found


def test_threads_change_no_bit(lane: TorchLane, threads: Callable[[int], None]) -> None:
    threads(1)
    alone = logits(lane)
    for count in (2, 3):
        threads(count)
        assert torch.equal(logits(lane), alone)


def test_hooks_see_a_fused_layer(lane: TorchLane, tiny_folder: Callable[..., Path]) -> None:
    """Every site's hidden states are those of transformers' own layers."""
    plain = TorchLane(tiny_folder(hf.LlamaConfig(**GROUPED)), dtype="float32", slots=3, context=126)
    chunk = Chunk(0, 0, (), TokenTree.chain(IDS))
    seen, truth = (one.forward([chunk], Needs(hidden=tuple(one.sites))).hidden for one in (lane, plain))
    assert set(seen) == set(truth) == set(lane.sites)
    for site, wanted in truth.items():
        torch.testing.assert_close(seen[site], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class Scattered(Paths):
    """A twin: a tree's nodes read all columns before their own."""

    def __init__(self, cache: Cache, runs: Any) -> None:
        class Chain(Run):
            branches = False

        super().__init__(cache, [Chain(run.slot, run.start, run.first, run.prefix, run.tree) for run in runs])


def test_a_broken_twin_is_found_out(lane: TorchLane, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.torch.test_trees import differing, random

    assert differing(lane, random.Random(5))[0] == 0
    monkeypatch.setattr(lane_module, "Paths", Scattered)
    wrong, seen = differing(lane, random.Random(5))
    assert 0 < wrong < seen


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 49_152])
def test_contenders_are_numpys(size: int) -> None:
    """Same ids, same words, with -inf, NaN and ties; so the draw has the same bits."""
    make = np.random.default_rng(size)
    x_RV = make.normal(0, 4, (5, size)).astype(np.float32)
    x_RV[1, make.random(size) < 0.9] = -np.inf
    x_RV[2, size // 2] = np.nan
    x_RV[3] = 1.5
    x_RV[4] = -np.inf
    table = randomness._table(size)
    both_R = randomness._both([3, 2**64 - 1, 5, 6, 7], [0, 1, 2**40, 3, 4], randomness.DRAW)
    low_R = x_RV.max(1) - np.float32(8)
    given = x_RV, low_R, table, both_R, randomness.LOUD_WORDS
    for ours, theirs in zip(native.contend(*given), randomness.contenders(*given), strict=True):
        assert ours[0].tolist() == theirs[0].tolist()
        assert ours[1].tolist() == theirs[1].tolist()


def test_the_draw_has_the_same_tokens() -> None:
    make = torch.Generator().manual_seed(3)
    x_RV = torch.randn(64, 5000, generator=make) * 3
    keys, t = [*range(64)], [7] * 64
    assert torch.equal(randomness.draw(x_RV, keys, t, native.contend), randomness.draw(x_RV, keys, t))


def test_refusals(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(hf.LlamaConfig(**GROUPED))
    with pytest.raises(UserError, match="true, false or auto"):
        TorchEngine(folder, options={"compile": "yes"})
    with pytest.raises(Refused, match="computes in float32, not in bfloat16"):
        TorchEngine(folder, dtype="bfloat16", options={"compile": True})
    with pytest.raises(Refused, match="decoder-only"):
        native.check_native("float32", encoder_decoder=True)
    with pytest.raises(Refused, match="not for cuda"):
        native.check_native("float32", encoder_decoder=False, device="cuda")
    monkeypatch.setattr(native, "native", native.native.__wrapped__)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "--no-such-flag"))
    with pytest.raises(Refused, match="could not build"):
        native.check_native("float32", encoder_decoder=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Refused, match=r"C\+\+ compiler"):
        TorchEngine(folder, dtype="float32", options={"compile": True})
    without = TorchEngine(folder, dtype="float32", slots=2, max_length=64)
    assert without.kernels == "torch's"
    assert "C++ compiler" in without.detail, "auto says why it goes without"


def test_auto_takes_them_where_they_serve(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(hf.LlamaConfig(**GROUPED))
    engine = TorchEngine(folder, dtype="float32", slots=2, max_length=64)
    assert (engine.kernels, engine.lane.compiled) == ("built here", True)
    assert TorchEngine(folder, dtype="float32", slots=2, max_length=64, options={"compile": False}).kernels == "torch's"
    half = TorchEngine(folder, dtype="bfloat16", slots=2, max_length=64)
    assert half.kernels == "torch's"
    assert "float32" in half.detail
