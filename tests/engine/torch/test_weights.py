"""Attention weights for whoever reads them: transformers' own, made on access, and no bit of a logit depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from raydecode import registry
from raydecode.constraint import Continue
from raydecode.contracts import Effects, Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch import weights
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.toy import ToyEngine
from raydecode.errors import Refused
from raydecode.request import Card, DecodingSpec
from raydecode.tree import TokenTree
from tests.engine.torch.recorder import Decoder, ask
from tests.engine.torch.test_families import FAMILIES, GROUPED
from tests.methods import visiting

IDS = [(37 * i) % 300 + 5 for i in range(75)]
SOME = ("llama", "mistral_sliding", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt")


@pytest.fixture(scope="module")
def lane(tiny_folder: Callable[..., Path]) -> TorchLane:
    return TorchLane(tiny_folder(hf.LlamaConfig(**GROUPED)), dtype="float32", slots=4, context=100)


@pytest.mark.parametrize("family", SOME)
def test_they_are_transformers_own(family: str, tiny_folder: Callable[..., Path]) -> None:
    """Across a page's edge, behind a chunk, and on both branches of a tree."""
    folder = tiny_folder(FAMILIES[family]())
    lane = TorchLane(folder, dtype="float32", slots=2, context=100)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    sites = lane.readable
    lane.forward([Chunk(0, 0, tuple(IDS[:50]), None)], Needs())
    tree = TokenTree.paths(IDS[70], [(9, 8), tuple(IDS[71:])])
    found = lane.forward(
        [Chunk(1, 0, (5,), TokenTree.root(6)), Chunk(0, 50, tuple(IDS[50:70]), tree)], Needs(hidden=sites)
    )
    deepest = max(range(len(tree)), key=lambda node: len(tree.path(node)))
    for node, ids in ((0, IDS[:71]), (deepest, IDS), (tree.child(0, 9), [*IDS[:71], 9])):
        assert node is not None
        with torch.inference_mode():
            truth = model(torch.tensor([ids]), output_attentions=True).attentions
        for site, layer in zip(sites, truth, strict=True):
            torch.testing.assert_close(found.hidden[site][1 + node], layer[0, :, -1], rtol=1e-4, atol=1e-5)
            assert float(found.hidden[site][1 + node].sum(1).sub(1).abs().max()) < 1e-5


def test_asking_changes_no_bit_and_costs_only_who_looks(lane: TorchLane, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [Chunk(0, 0, tuple(IDS[:9]), TokenTree.chain(IDS[9:12])), Chunk(1, 0, (5, 6), TokenTree.root(7))]
    plain = lane.forward(chunks, Needs())
    for slot in (0, 1):
        lane.release(slot)
    asked = lane.forward(chunks, Needs(hidden=("attention.1", "layer.0")))
    assert torch.equal(asked.logits_MV, plain.logits_MV)
    assert (len(asked.hidden["attention.1"]), asked.hidden["attention.1"][3].shape) == (4, (6, 3))
    assert [len(row[0]) for row in asked.hidden["attention.1"][:3]] == [10, 11, 12]
    made = []
    monkeypatch.setattr(weights.Weights, "__getitem__", lambda self, at: made.append(at))
    lane.forward([Chunk(0, 12, (), TokenTree.root(8))], Needs(hidden=("attention.0",)))
    assert made == [], "nobody looked"


class Watching:
    """Report how much attention the last layer pays to the first token."""

    effects = Effects()
    needs = Needs(hidden=("attention.2",))

    def open(self, request, host, options):  # type: ignore[no-untyped-def]
        return ()

    def observe(self, state, event):  # type: ignore[no-untyped-def]
        weights_HS = event.hidden["attention.2"]
        return (*state, (weights_HS.shape[1], round(float(weights_HS[:, 0].mean()), 4)))

    def constrain(self, state):  # type: ignore[no-untyped-def]
        return None

    def verdict(self, state):  # type: ignore[no-untyped-def]
        return Continue()

    def score(self, state):  # type: ignore[no-untyped-def]
        return None

    def close(self, state, outcome):  # type: ignore[no-untyped-def]
        return {"watched": state}


def test_a_monitor_reads_them_beside_rows_that_do_not(lane: TorchLane) -> None:
    with registry.guests():
        registry.register("monitors")(Watching)
        plain = ask("p", IDS[:9], sampler=(Card("greedy"),), max_tokens=4, ignore_eos=True)
        watched = dataclasses.replace(
            plain, id="w", decoding=dataclasses.replace(plain.decoding, monitors=(Card("watching"),))
        )
        loop = Decoder(lane)
        found = {}
        for row in (plain, watched):
            loop.submit(row)
        while loop.busy:
            found |= {event.row.request: event for event in loop.step() if hasattr(event, "reason")}
        assert found["w"].tokens == found["p"].tokens
        seen = found["w"].reports[0]["watched"]
        assert [length for length, _ in seen] == [9, 10, 11, 12]
        assert all(0 < share < 1 for _, share in seen)


def test_they_can_be_read_and_not_changed(lane: TorchLane) -> None:
    with visiting():
        push = DecodingSpec(interventions=(Card("push", {"site": "attention.1"}),))
        refused = Decoder(lane).refuse(push)
        assert isinstance(refused, Refused)
        assert "no such site" in str(refused)
    with registry.guests():
        registry.register("monitors")(Watching)
        spec = DecodingSpec(monitors=(Card("watching"),))
        assert Decoder(lane).refuse(spec) is None
        assert "attention.2" in str(ToyEngine().refuse(spec))
