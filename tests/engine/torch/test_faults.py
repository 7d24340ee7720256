"""A row that meets a NaN ends alone; nobody who shares its batch, its slot or its drafts notices."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from raydecode import registry
from raydecode.contracts import Needs, RowView
from raydecode.engine.lane import Chunk
from raydecode.engine.torch.cache import BLOCK, Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, drain
from tests.engine.torch.test_families import GROUPED
from tests.methods.drafters import Drafting

POISON = 7
DRAFT = Card("branching")


@pytest.fixture(scope="module")
def poisoned(tiny_folder: Callable[..., Path]) -> TorchLane:
    """A tiny Llama whose token POISON has no finite embedding."""
    lane = TorchLane(tiny_folder(hf.LlamaConfig(**GROUPED)), dtype="float32", slots=4, context=100)
    with torch.no_grad():
        lane.model.get_input_embeddings().weight[POISON] = float("nan")
    return lane


@pytest.fixture
def fresh(poisoned: TorchLane) -> TorchLane:
    lane = copy.copy(poisoned)
    lane.cache = Cache(lane.slots, lane.context)
    return lane


def test_nan_ends_its_row_only(poisoned: TorchLane) -> None:
    rows = [ask(name, [*range(20, 20 + n)], max_tokens=6, ignore_eos=True) for name, n in (("a", 5), ("b", 17))]
    bad = ask("bad", [30, POISON, 31], max_tokens=6)
    memory = Memory()
    truth = drain(Decoder(Recorder(poisoned, 1, memory)), rows)
    found = drain(Decoder(Recorder(poisoned, 3, memory)), [bad, *rows])
    assert (found["bad", 0].reason, found["bad", 0].error.kind) == ("error", "BadLogits")
    assert {key: found[key] for key in truth} == truth
    after = drain(Decoder(Recorder(poisoned, 1, memory)), [bad, *rows])  # the same slot, one after another
    assert {key: after[key] for key in truth} == truth
    assert memory.compared > 0
    assert not memory.conflicts


def test_a_freed_slot_holds_nothing(fresh: TorchLane) -> None:
    fresh.forward([Chunk(0, 0, (30, POISON, 31), None)], Needs())
    assert any(keys[0].isnan().any() for keys, _ in fresh.cache._layers.values())
    fresh.release(0)
    assert not any(keys.any() or values.any() for keys, values in fresh.cache._layers.values())


def test_a_rejected_draft_leaves_nothing(fresh: TorchLane) -> None:
    """0 * NaN is NaN: a draft's dropped columns must not reach the row's next tokens."""
    fresh.forward([Chunk(0, 0, (30, 31), TokenTree.chain([32, 33, POISON, 34]))], Needs())
    fresh.keep(0, 2, [0, 1])
    found = fresh.forward([Chunk(0, 4, (), TokenTree.root(40))], Needs()).logits_MV
    fresh.forward([Chunk(1, 0, (30, 31, 32, 33), None)], Needs())
    assert torch.equal(found, fresh.forward([Chunk(1, 4, (), TokenTree.root(40))], Needs()).logits_MV)


def test_cache_grows_within_the_context_and_keeps_rows() -> None:
    cache = Cache(2, 1000)
    keys = torch.arange(300.0).reshape(300, 1, 1)
    cache.reserve(200)
    cache.write(0, torch.zeros(200, dtype=int), torch.arange(200), keys[:200], keys[:200])
    before = cache.bytes
    cache.reserve(300)
    assert before < cache.bytes <= 2 * 2 * 1024 * 4
    assert torch.equal(cache.layer(0)[0][0, 0, :200, 0], keys[:200, 0, 0])
    cache.reserve(1000)
    assert cache.layer(0)[0].shape[2] == -(-1000 // BLOCK) * BLOCK
    assert cache.bytes == 2 * 2 * 1024 * 4


def test_keep_moves_a_path_and_fork_copies() -> None:
    cache = Cache(2, 64)
    x = torch.arange(6.0).reshape(6, 1, 1)
    cache.write(0, torch.zeros(6, dtype=int), torch.arange(6), x, x)
    cache.note(0, 6)
    cache.keep(0, 2, [0, 2])
    assert cache.layer(0)[0][0, 0, :6, 0].tolist() == [0, 1, 2, 4, 0, 0]
    cache.fork(0, 1, 3)
    assert cache.layer(0)[1][1, 0, :5, 0].tolist() == [0, 1, 2, 0, 0]


def test_a_draft_that_branches_is_cut_to_its_trunk(poisoned: TorchLane) -> None:
    rows = [ask("a", [20, 21, 22], max_tokens=12, ignore_eos=True), ask("b", [40, 41], max_tokens=12, ignore_eos=True)]
    truth = drain(Decoder(Recorder(poisoned, 2, Memory())), rows)

    class Branching(Drafting):
        """Proposes what will come, and something else beside it."""

        def tree(self, row: RowView, budget: int, shared: object) -> TokenTree:
            ahead = truth[row.id.request, 0].tokens[row.t : row.t + budget]
            return TokenTree.paths(row.pending, [ahead, (1, 2), (*ahead[:1], 3)])

    with registry.guests():
        registry.register("drafters")(Branching)
        drafted = [dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, drafter=DRAFT)) for r in rows]
        loop = Decoder(Recorder(poisoned, 2, Memory()), given={("drafters", "branching"): Branching()})
        found = drain(loop, drafted)
    assert found == truth
    assert all(one.stats.accepted >= 6 and not one.stats.draft_failures for one in found.values())
