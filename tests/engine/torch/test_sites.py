"""Hidden states, early logits and interventions inside transformers models: right, on demand, and for nobody else."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, drain
from tests.engine.torch.test_families import FAMILIES, GROUPED
from tests.methods import visiting

IDS = [(37 * i) % 300 + 5 for i in range(20)]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder(hf.LlamaConfig(**GROUPED))


@pytest.fixture(scope="module")
def shared_lane(folder: Path) -> TorchLane:
    return TorchLane(folder, dtype="float32", slots=4, context=100)


@pytest.fixture
def lane(shared_lane: TorchLane) -> TorchLane:
    lane = copy.copy(shared_lane)
    lane.cache = Cache(lane.slots, lane.context)
    return lane


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_transformers_hidden_states(family: str, tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(FAMILIES[family]())
    lane = TorchLane(folder, dtype="float32", slots=2, context=64)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    depth = len(lane.sites) - 3
    assert lane.sites == ("input", "embedding", *(f"layer.{i}" for i in range(depth)), "final")
    with torch.inference_mode():
        truth = model(torch.tensor([IDS]), output_hidden_states=True)
        given = model.get_input_embeddings()(torch.tensor([IDS]))[0]
    wanted = ("input", *lane.sites[1:])
    chunks = [Chunk(1, 0, (9, 8, 7), None), Chunk(0, 0, tuple(IDS[:15]), TokenTree.chain(IDS[15:]))]
    out = lane.forward(chunks, Needs(hidden=wanted))
    assert {site: x.shape[0] for site, x in out.hidden.items()} == dict.fromkeys(wanted, 5)
    torch.testing.assert_close(out.hidden["input"], given[15:], **CLOSE)
    for site, state in zip(lane.sites[1:-2], truth.hidden_states, strict=False):  # the last one is normed there
        torch.testing.assert_close(out.hidden[site], state[0, 15:], **CLOSE)
    torch.testing.assert_close(out.hidden["final"], truth.hidden_states[-1][0, 15:], **CLOSE)
    assert out.head is not None
    logits = out.head(out.hidden["final"], False)
    assert torch.equal(logits, out.logits_MV), "the head of the final site is the model's own, bit for bit"
    normed = out.head(out.hidden[lane.sites[-2]], True)
    torch.testing.assert_close(normed, out.logits_MV, rtol=1e-4, atol=1e-4 * float(out.logits_MV.abs().max()))


def test_asking_changes_no_bit_and_costs_only_who_asks(lane: TorchLane, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [Chunk(0, 0, tuple(IDS[:9]), TokenTree.chain(IDS[9:12])), Chunk(1, 0, (5, 6), TokenTree.root(7))]
    head_rows, seen = [], []
    lane.model.lm_head.register_forward_hook(lambda module, given, out: head_rows.append(out.shape[1]))
    plain = lane.forward(chunks, Needs())
    assert (plain.hidden, head_rows) == ({}, [4]), "the output layer saw the tree's nodes and nothing else"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lane.inside.layers)
    visit = lane.inside._watch
    monkeypatch.setattr(lane.inside, "_watch", lambda site, do: seen.append(site) or visit(site, do))
    for site in lane.sites:
        for slot in (0, 1):
            lane.release(slot)
        asked = lane.forward(chunks, Needs(hidden=(site,)))
        assert torch.equal(asked.logits_MV, plain.logits_MV)
        assert list(asked.hidden) == [site]
    assert seen == list(lane.sites), "one hook for each site that was asked for"
    assert head_rows == [4] * (1 + len(lane.sites))
    assert asked.head is not None
    asked.head(asked.hidden["final"][1:3], True)
    assert head_rows[-1] == 2, "early logits are computed for the rows that ask"
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lane.inside.layers)
    for handle in list(lane.model.lm_head._forward_hooks):
        del lane.model.lm_head._forward_hooks[handle]


@pytest.mark.parametrize("site", ["input", "embedding", "layer.0", "layer.2", "final"])
def test_a_hook_acts_at_its_nodes_only(lane: TorchLane, folder: Path, site: str) -> None:
    """Against the model itself with a module hook that changes position 4 of one sequence."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    truth_of = {
        "input": model.get_input_embeddings(), "embedding": model.get_input_embeddings(),
        "layer.0": model.model.layers[0], "layer.2": model.model.layers[2], "final": model.model.norm,
    }  # fmt: skip

    def change(module: object, given: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[0, 4] = out[0, 4] * -2 + 1
        return out

    truth_of[site].register_forward_hook(change)
    with torch.inference_mode():
        truth = model(torch.tensor([IDS])).logits[0]
    other = Chunk(1, 0, (5, 6, 7), TokenTree.chain(IDS[:4]))
    quiet = lane.forward([other], Needs()).logits_MV
    lane.release(1)
    hook = Hook(site, (7 + 4,), lambda x_MD: x_MD * -2 + 1)
    out = lane.forward([other, Chunk(0, 0, tuple(IDS[:3]), TokenTree.chain(IDS[3:]))], Needs(), [hook])
    assert torch.equal(out.logits_MV[:4], quiet), "a row without it beside one that has it keeps its bits"
    torch.testing.assert_close(out.logits_MV[4:], truth[3:, : out.logits_MV.shape[1]], **CLOSE)


def test_vectors_in_place_of_tokens(lane: TorchLane, folder: Path) -> None:
    """An intervention at `input` is transformers' `inputs_embeds`."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    soft = torch.randn(6, 48, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        rest = model.get_input_embeddings()(torch.tensor(IDS))
        truth = model(inputs_embeds=torch.cat([soft, rest])[None]).logits[0, 6:]
    chunk = Chunk(0, 0, (0,) * 6, TokenTree.chain(IDS))
    out = lane.forward([chunk], Needs(), [Hook("input", tuple(range(6)), lambda x_MD: soft)])
    torch.testing.assert_close(out.logits_MV, truth[:, : out.logits_MV.shape[1]], **CLOSE)


def test_interventions_per_row_keep_every_rows_bits(shared_lane: TorchLane) -> None:
    """The law in its literal form, row by row: plain rows share a memory with plain decoding."""
    push = Card("push", {"site": "layer.1", "strength": 3.0, "start": 2})
    path = Card("by_path", {"site": "embedding"})
    plain = [ask(f"p{n}", IDS[:n], max_tokens=8, ignore_eos=True) for n in (5, 17)]
    acting = [
        ask("a", IDS[:9], max_tokens=8, ignore_eos=True, interventions=(push,)),
        ask("b", IDS[:12], max_tokens=8, ignore_eos=True, interventions=(path, push), n=2),
    ]
    with visiting():
        truth = {}
        for row in [*plain, *acting]:
            truth |= drain(Decoder(Recorder(shared_lane, 1, Memory())), [row])
        for slots, chunk in ((4, 512), (2, 7)):
            found = drain(Decoder(Recorder(shared_lane, slots, Memory()), chunk=chunk), [*acting, *plain])
            assert found == truth
        memory = Memory()
        drain(Decoder(Recorder(shared_lane, 1, memory)), plain)
        memory.compared = 0
        drain(Decoder(OnlyPlain(shared_lane, 4, memory)), [*acting, *plain])
        assert memory.compared >= 16
        assert not memory.conflicts
        for cut in (1, 6):
            resumed = [dataclasses.replace(acting[0], resume=(truth["a", 0].tokens[:cut],))]
            again = drain(Decoder(Recorder(shared_lane, 2, Memory())), resumed)["a", 0]
            assert again == truth["a", 0]
            assert again.stats.replay_mismatches == 0
    bare = [dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, interventions=())) for r in acting]
    unmoved = drain(Decoder(Recorder(shared_lane, 4, Memory())), bare)
    assert all(unmoved[key].tokens != truth[key].tokens for key in unmoved), "every intervention changed its text"


class OnlyPlain(Recorder):
    """Remembers the logits of slots on which no hook acts."""

    def forward(self, chunks, needs, hooks=()):  # type: ignore[no-untyped-def]
        nodes = {node for hook in hooks for node in hook.nodes}
        out = self.lane.forward(chunks, needs, hooks)
        at = first = 0
        for chunk in chunks:
            path = self.tokens[chunk.slot][: chunk.start] + chunk.prefix
            for i, token in enumerate(chunk.tree.token if chunk.tree else ()):
                path = (*path, token)
                if first not in nodes:
                    self.memory.see(path, hashlib.md5(out.logits_MV[at + i].numpy().tobytes()).hexdigest())
            self.tokens[chunk.slot] = path
            at += len(chunk.tree) if chunk.tree else 0
            first += len(chunk)
        return out


@pytest.mark.parametrize(("where", "said"), [("input", "input at position 1 (token 7)"), (1, "layer.1 at position 0")])
def test_a_nan_is_traced_to_its_layer(folder: Path, where: str | int, said: str) -> None:
    lane = TorchLane(folder, dtype="float32", slots=2, context=64)
    with torch.no_grad():
        if where == "input":
            lane.model.get_input_embeddings().weight[7] = float("nan")
        else:
            lane.model.model.layers[where].input_layernorm.weight[3] = float("inf")
    rows = [ask("bad", [30, 7, *range(40, 90, 3)], max_tokens=4), ask("good", [30, 31], max_tokens=4)]
    found = drain(Decoder(Recorder(lane, 2, Memory())), rows)
    fault = found["bad", 0].error
    assert (fault.stage, fault.kind) == ("model", "BadLogits")
    assert said in fault.message
    assert (found["good", 0].error is None) == (where == "input")
