"""Gradients through the model: autograd's own, for who asks, and a guest that lives by them (recoding)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from pydantic import Field
from torch import Tensor

from raydecode import conformance, registry
from raydecode.contracts import Needs, SamplerRows
from raydecode.engine.lane import Hook
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.toy import ToyEngine
from raydecode.engine.vllm.params import refuse as vllm_refuses
from raydecode.errors import Refused, RowError
from raydecode.request import Card, DecodingSpec
from tests.engine.torch.recorder import Decoder, ask, drain
from tests.engine.torch.test_families import FAMILIES, GROUPED
from tests.methods import visiting

IDS = [(37 * i) % 300 + 5 for i in range(20)]
SOME = ("llama", "qwen3", "gemma2", "gpt2", "olmoe", "mistral_sliding")


def entropy(logits_V: Tensor) -> Tensor:
    logp_V = logits_V.log_softmax(0)
    return -(logp_V.exp() * logp_V).sum()


class Recoding:
    """Move the last token's hidden state at a site down the gradient of the entropy, and choose from what it says then.

    A step of length alpha, halved until the entropy falls, else none. What later tokens read of it is not recoded.
    """

    class Options(registry.Options):
        site: str = Field(default="layer.1", description="where", examples=["layer.0", "layer.1"])
        alpha: float = Field(default=0.5, ge=0, description="length of the step; 0 is off", examples=[0.0, 0.5])

    needs = Needs(grad=True)
    columns: dict = {}
    identity = {"alpha": 0.0}
    seen: list[tuple[float, float]] = []

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped = x_RC.clone()
        for r, (site, alpha) in enumerate(zip(rows.given("site"), rows.given("alpha"), strict=True)):
            if not alpha:
                continue
            here = rows.slope(r, site, entropy)
            for part in (1.0, 0.5, 0.25):
                step_D = -alpha * part * here.gradient_D / here.gradient_D.norm().clamp(min=1e-12)
                there = rows.slope(r, site, entropy, step_D)
                if there.value < here.value:
                    self.seen.append((here.value, there.value))
                    shaped[r] = there.logits_V.where(~x_RC[r].isneginf(), x_RC[r])
                    break
            else:
                self.seen.append((here.value, here.value))
        return shaped


class Undeclared(Recoding):
    """Twin: takes gradients and does not say so."""

    needs = Needs()


@pytest.fixture(scope="module")
def lane(tiny_folder: Callable[..., Path]) -> TorchLane:
    return TorchLane(tiny_folder(hf.LlamaConfig(**GROUPED)), dtype="float32", slots=4, context=100)


@pytest.fixture
def guests() -> Any:
    with registry.guests():
        for guest in (Recoding, Undeclared):
            registry.register("samplers")(guest)
        Recoding.seen.clear()
        yield


@pytest.mark.parametrize("family", SOME)
def test_it_is_autograds(family: str, tiny_folder: Callable[..., Path]) -> None:
    """Against transformers' own module with one leaf in it, shifted and not."""
    folder = tiny_folder(FAMILIES[family]())
    lane = TorchLane(folder, dtype="float32", slots=1, context=64)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    holder = model.transformer.h if family == "gpt2" else model.model.layers
    size = len(lane.token_bytes)
    for layer, shift in ((0, 0.0), (1, 0.3)):
        leaf: list[Tensor] = []

        def change(module: object, given: object, out: Any, leaf: list = leaf, shift: float = shift) -> Any:
            x = out[0] if isinstance(out, tuple) else out
            leaf.append((x[0, -1].detach() + shift).requires_grad_())
            y = torch.cat([x[:, :-1], leaf[0][None, None]], 1)
            return (y, *out[1:]) if isinstance(out, tuple) else y

        handle = holder[layer].register_forward_hook(change)
        logits_V = model(torch.tensor([IDS])).logits[0, -1, :size]
        handle.remove()
        value = entropy(logits_V)
        (truth_D,) = torch.autograd.grad(value, leaf)
        shift_D = torch.full_like(truth_D, shift) if shift else None
        found = lane.slope(IDS, f"layer.{layer}", entropy, (), shift_D)
        assert found.value == pytest.approx(float(value.detach()), rel=1e-4)
        far = 1e-4 * float(logits_V.detach().abs().max())
        torch.testing.assert_close(found.logits_V, logits_V.detach(), rtol=1e-3, atol=far)
        torch.testing.assert_close(found.gradient_D, truth_D, rtol=1e-3, atol=1e-4 * float(truth_D.abs().max()))
    assert not any(parameter.requires_grad for parameter in lane.model.parameters())


def test_interventions_act_on_the_path(lane: TorchLane) -> None:
    hook = Hook("layer.0", tuple(range(5, 20)), lambda x_MD: x_MD * -2 + 1)
    plain, moved = (lane.slope(IDS, "layer.1", entropy, acting, None) for acting in ((), (hook,)))
    assert not torch.equal(plain.logits_V, moved.logits_V)
    assert not torch.equal(plain.gradient_D, moved.gradient_D)


def test_recoding_lowers_what_it_says_and_nobody_else_notices(lane: TorchLane, guests: None) -> None:
    card = Card("recoding", {"alpha": 0.5})
    rows = [ask(f"g{n}", IDS[:n], sampler=(card,), max_tokens=6, ignore_eos=True) for n in (5, 12)]
    others = [ask(f"p{n}", IDS[:n], max_tokens=6, ignore_eos=True, logprobs=1) for n in (5, 12)]
    off = ask("off", IDS[:5], sampler=(Card("recoding", {"alpha": 0.0}),), max_tokens=6, ignore_eos=True)
    bare = ask("off", IDS[:5], sampler=(), max_tokens=6, ignore_eos=True)
    plain = drain(Decoder(lane), others)
    assert not Recoding.seen, "nothing is computed that no row asked for"
    alone = {key: one for row in rows for key, one in drain(Decoder(lane), [row]).items()}
    falls = [after < before for before, after in Recoding.seen]
    assert sum(falls) > 0.95 * len(falls) > 10
    together = drain(Decoder(lane), [*rows, *others])
    assert together == alone | plain, "rows that ask are the same beside others, and the others' bits are their own"
    assert drain(Decoder(lane), [off]) == drain(Decoder(lane), [bare])


def test_it_is_refused_by_name_where_there_are_none(lane: TorchLane, guests: None) -> None:
    spec = DecodingSpec(sampler=(Card("recoding"),))
    assert Decoder(lane).refuse(spec) is None
    for refused in (ToyEngine().refuse(spec), vllm_refuses(spec)):
        assert isinstance(refused, Refused)
        assert "recoding" in str(refused)
    quiet = drain(Decoder(lane), [ask("u", IDS[:5], sampler=(Card("undeclared"),), max_tokens=2)])["u", 0]
    assert (quiet.error.stage, quiet.error.kind) == ("sampler", "NotDeclared")
    lost = ask("u", IDS[:5], sampler=(Card("recoding", {"site": "layer.77"}),), max_tokens=2)
    assert "layer.77" in drain(Decoder(lane), [lost])["u", 0].error.message


def test_a_guest_of_this_kind_obeys_the_laws_of_samplers(guests: None) -> None:
    conformance.check(registry.get("samplers", "recoding"))


def test_a_loss_owes_one_number(lane: TorchLane) -> None:
    for loss in (lambda x_V: x_V, lambda x_V: x_V.detach().sum()):
        with pytest.raises(RowError, match="one number"):
            lane.slope(IDS, "layer.1", loss)


def test_an_intervention_cannot_have_them_yet(lane: TorchLane) -> None:
    with visiting():
        from tests.methods.interventions import Push

        class Steep(Push):
            """Twin: wants gradients inside the forward."""

            needs = Needs(grad=True)

        registry.register("interventions")(Steep)
        refused = Decoder(lane).refuse(DecodingSpec(interventions=(Card("steep"),)))
        assert "interventions/steep needs gradients" in str(refused)
