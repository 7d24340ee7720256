"""The toy lane: a cache that is read, so that a wrong fork, keep or mask shows in the logits."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook
from raydecode.engine.toy import EOS, TOKEN_BYTES, VOCAB, ToyEngine, ToyLane, logits
from raydecode.events import OutcomeEvent
from raydecode.request import DecodingSpec, Ids, Messages, Request, Text
from raydecode.tree import TokenTree
from tests.engine.lanes import exercise

TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)


def test_logits_depend_on_the_whole_context():
    seen = {tuple(logits((first, 1, 2, 3, 0, 1)).tolist()) for first in range(VOCAB)}
    assert len(seen) == VOCAB
    assert logits((0, 1)).tolist() != logits((1, 0)).tolist()
    assert logits((0,)).shape == (VOCAB,)


def test_every_token_is_likely_enough_to_be_met():
    """Truth by enumeration needs cells that fill: no token is below 1e-5 anywhere near the root."""
    rows = torch.stack([logits((a, b)) for a in range(VOCAB) for b in range(VOCAB)]).softmax(1)
    assert float(rows.min()) > 1e-5
    assert 0.01 < float(rows[:, EOS].mean()) < 0.25


@settings(deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4), st.integers(0, 5))
def test_a_nodes_logits_are_those_of_its_path(rows, cut):
    """Ragged chunks, prefixes fed in two calls, trees with siblings: bit for bit the table."""
    lane = ToyLane(slots=4, context=64)
    for slot, (prefix, _) in enumerate(rows):
        if prefix[:cut]:
            lane.forward([Chunk(slot, 0, tuple(prefix[:cut]), None)], Needs())
    chunks, expected = [], []
    for slot, (prefix, path) in enumerate(rows):
        other = [(token + 1) % VOCAB for token in path[:2]]
        tree = TokenTree.paths(prefix[-1], [path, other])
        start = len(prefix[:cut])
        chunks.append(Chunk(slot, start, tuple(prefix[start:]), tree))
        for node in range(len(tree)):
            context = (*prefix, *(tree.token[n] for n in tree.path(node)))
            expected.append(logits(context))
    out = lane.forward(chunks, Needs()).logits_MV
    assert torch.equal(out, torch.stack(expected))


def test_keep_fork_and_release():
    lane = ToyLane(slots=2, context=64)
    tree = TokenTree.paths(1, [(2, 3), (0, 0)])
    lane.forward([Chunk(0, 0, (0,), tree)], Needs())
    lane.keep(0, 1, (0, 3, 4))  # the root and the second branch
    after = lane.forward([Chunk(0, 4, (), TokenTree.root(2))], Needs()).logits_MV[0]
    assert torch.equal(after, logits((0, 1, 0, 0, 2)))
    lane.fork(0, 1, 2)
    forked = lane.forward([Chunk(1, 2, (), TokenTree.root(3))], Needs()).logits_MV[0]
    assert torch.equal(forked, logits((0, 1, 3)))
    lane.release(0)
    with pytest.raises(AssertionError, match="continues its cache"):
        lane.forward([Chunk(0, 2, (), TokenTree.root(2))], Needs())


def test_a_hook_changes_its_own_nodes_only():
    lane = ToyLane(slots=2, context=64)
    chunks = [Chunk(0, 0, (1,), TokenTree.root(2)), Chunk(1, 0, (1,), TokenTree.root(2))]
    out = lane.forward(chunks, Needs(hidden=("final",)), [Hook("final", (3,), lambda x_MD: x_MD * 0)])
    assert torch.equal(out.logits_MV[0], logits((1, 2)))
    assert torch.equal(out.hidden["final"][1], torch.zeros(8))
    assert not torch.equal(out.logits_MV[1], out.logits_MV[0])


def test_prompts():
    lane = ToyLane(slots=1, context=64)
    assert lane.encode(Text("ab()")) == [0, 1, 2, 3]
    assert lane.encode(Ids((3, 1))) == [3, 1]
    assert lane.encode(Messages(({"role": "user", "content": "a"}, {"role": "user", "content": "("}))) == [0, 2]
    assert all(0 <= id < VOCAB for id in lane.encode(Text("any text: é")))
    assert TOKEN_BYTES[EOS] == b""


def test_poison_needs_a_slot():
    """A poisoned request that waits harms nobody: the engine dies when the row runs, not when it is handed in."""
    engine = ToyEngine(slots=1, poison="((")
    engine.submit(Request("good", "g", Text("ab"), DecodingSpec(max_tokens=3)))
    engine.submit(Request("bad", "b", Text("a((b"), DecodingSpec(max_tokens=3)))
    assert engine.waiting == 2
    events = engine.step()
    assert {row.request for row in engine.running} == {"good"}
    assert not any(isinstance(event, OutcomeEvent) and event.row.request == "bad" for event in events)


# ------------------------------------------------------------------------------------------------------ random trees
def exercised(lane: ToyLane, seed: int) -> int:
    return exercise(lane, 3, random.Random(seed), logits, range(4), steps=14)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_random_trees_are_read_along_their_paths_kept_rolled_back_and_forked(seed):
    exercised(ToyLane(slots=3, context=64), seed)


@pytest.mark.parametrize("twin", ["no compaction", "no copy on write", "no ancestors"])
def test_broken_twins_of_a_cache_are_found_out(twin):
    class Twin(ToyLane):
        def keep(self, slot, length, path):
            super().keep(slot, length, range(len(path)) if twin == "no compaction" else path)

        def reserve(self, slot, start, length):
            if twin != "no copy on write" or start % self.page == 0 or not self.pages.tables[slot]:
                return super().reserve(slot, start, length)
            return super().reserve(slot, -(-start // self.page) * self.page, length)

        def forward(self, chunks, needs, *more):
            if twin == "no ancestors":
                chunks = [dataclasses.replace(one, tree=TokenTree.chain(one.tree.token)) for one in chunks]
            return super().forward(chunks, needs, *more)

    assert sum(exercised(ToyLane(slots=3, context=64), seed) for seed in range(20)) > 200
    with pytest.raises(AssertionError):
        for seed in range(20):
            exercised(Twin(slots=3, context=64), seed)
