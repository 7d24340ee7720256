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
from raydecode.engine.torch.cache import PAGE, Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.engine.torch.builds import COMPILED
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, drain
from tests.engine.torch.test_families import GROUPED
from tests.methods.drafters import Drafting

POISON = 7
DRAFT = Card("branching")


@pytest.fixture(scope="module", params=COMPILED)
def poisoned(tiny_folder: Callable[..., Path], request: pytest.FixtureRequest) -> TorchLane:
    """A tiny Llama whose token POISON has no finite embedding."""
    folder = tiny_folder(hf.LlamaConfig(**GROUPED))
    lane = TorchLane(folder, dtype="float32", slots=4, context=100, compiled=request.param)
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


def test_a_freed_page_reaches_nobody(fresh: TorchLane) -> None:
    """Pages are not wiped: a NaN stays in a key, where only those who attend to it meet it."""
    fresh.forward([Chunk(0, 0, (30, POISON, 31), None)], Needs())
    keys, _ = fresh.cache.layer(0)
    assert keys[0, :, 1].isnan().all()
    assert not keys[0, :, 0].isnan().any()
    fresh.release(0)
    found = fresh.forward([Chunk(1, 0, (30,), TokenTree.root(31))], Needs()).logits_MV
    assert fresh.cache.pages.tables[1] == [0], "the same page"
    assert found.isfinite().all()
    assert all(values.isfinite().all() for _, pool in fresh.cache._layers.values() for values in [pool[:1]])


def test_a_rejected_draft_leaves_nothing(fresh: TorchLane) -> None:
    """0 * NaN is NaN: a draft's dropped columns must not reach the row's next tokens."""
    tree = TokenTree.paths(32, [(POISON, 34), (33, POISON, 34), (33, 35)])
    logits_MV = fresh.forward([Chunk(0, 0, (30, 31), tree)], Needs()).logits_MV
    assert logits_MV.isfinite().all(1).tolist() == [True, False, False, True, False, False, True]
    fresh.keep(0, 2, [0, 3])
    found = fresh.forward([Chunk(0, 4, (), TokenTree.root(40))], Needs()).logits_MV
    fresh.forward([Chunk(1, 0, (30, 31, 32, 33), None)], Needs())
    assert torch.equal(found, fresh.forward([Chunk(1, 4, (), TokenTree.root(40))], Needs()).logits_MV)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("inf")])
def test_a_value_that_is_not_finite_is_a_key_that_is_not(bad: float) -> None:
    cache = Cache(1, 64)
    x = torch.arange(6.0).reshape(3, 1, 2)
    value = x.clone()
    value[1, 0, 1] = bad
    cache.reserve(0, 0, 3)
    cache.flush()
    cache.write(0, torch.zeros(3, dtype=int), torch.arange(3), x, value)
    keys, values = cache.layer(0)
    assert values[0, 0, :4].tolist() == [[0, 1], [2, 0], [4, 5], [0, 0]]
    assert keys[0, 0, :3].isnan().any(-1).tolist() == [False, True, False]


def test_memory_follows_use() -> None:
    cache = Cache(32, 10_000)
    x = torch.zeros(100, 1, 2)
    cache.reserve(3, 0, 100)
    cache.flush()
    table = torch.tensor(cache.pages.tables[3])
    cache.write(0, table[torch.arange(100) // PAGE], torch.arange(100) % PAGE, x, x)
    assert cache.bytes == 2 * PAGE * 2 * 2 * 4
    cache.pages.release(3)
    cache.reserve(0, 0, 60)
    assert cache.bytes == 2 * PAGE * 2 * 2 * 4


def test_keep_moves_a_path_and_the_first_to_write_to_a_shared_page_copies_it() -> None:
    cache = Cache(2, 64)
    x = torch.arange(6.0).reshape(6, 1, 1)
    cache.reserve(0, 0, 6)
    cache.flush()
    cache.write(0, torch.zeros(6, dtype=int), torch.arange(6), x, x)
    cache.keep(0, 2, [0, 2])
    cache.pages.fork(0, 1, 3)
    assert cache.pages.tables[:2] == [[0], [0]]
    cache.reserve(1, 3, 4)
    assert cache.pages.tables[:2] == [[0], [1]]
    assert cache.layer(0)[0][:, 0, :4, 0].tolist() == [[0, 1, 2, 4]] * 2
    assert not cache.reserve(1, 4, 65), "two slots of one page each"


def test_a_draft_that_branches_changes_nothing(poisoned: TorchLane) -> None:
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
