"""Trees that branch: each node's logits are the bits of the chain of its path, on every family, beside other rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch.cache import PAGE
from raydecode.engine.torch.lane import TorchLane
from raydecode.tree import TokenTree
from tests.engine.lanes import exercise
from tests.engine.torch.builds import COMPILED, builds
from tests.engine.torch.test_families import FAMILIES, MOE
from tests.engine.torch.twins import TWINS

STARTS = 3, PAGE - 3, PAGE, 2 * PAGE - 40
"""Committed tokens before the tree: inside a page, its nodes on both sides of a boundary, at one, a long way before."""


def some_tree(make: random.Random) -> TokenTree:
    """Up to five paths of up to six tokens out of four, so that they share beginnings."""
    paths = [[make.randrange(5, 9) for _ in range(make.randrange(1, 7))] for _ in range(make.randrange(2, 6))]
    return TokenTree.paths(7, paths)


def differing(lane: TorchLane, make: random.Random) -> tuple[int, int]:
    """How many nodes, and tokens behind a kept path, do not have the logits of their chain; and of how many."""
    wrong = seen = 0
    for start in STARTS:
        ids, mate = ([make.randrange(20, 300) for _ in range(n)] for n in (start, 90))
        tree = some_tree(make)
        half = start // 2
        lane.forward([Chunk(1, 0, tuple(ids[:half]), None), Chunk(0, 0, tuple(mate), None)], Needs())
        beside = [Chunk(0, 90, (), TokenTree.paths(9, [(5, 6), (6,)])), Chunk(1, half, tuple(ids[half:]), tree)]
        found_MV = lane.forward(beside, Needs()).logits_MV[-len(tree) :]
        for node in range(len(tree)):
            path = [tree.token[i] for i in tree.path(node)]
            truth = lane.forward([Chunk(2, 0, tuple(ids), TokenTree.chain(path))], Needs()).logits_MV[-1]
            lane.release(2)
            wrong += not torch.equal(found_MV[node], truth)
            seen += 1
        path = tree.path(make.randrange(len(tree)))
        lane.keep(1, start, path)
        after = lane.forward([Chunk(1, start + len(path), (), TokenTree.root(11))], Needs()).logits_MV[0]
        tokens = [tree.token[i] for i in path]
        truth = lane.forward([Chunk(2, 0, (*ids, *tokens), TokenTree.root(11))], Needs()).logits_MV[0]
        wrong += not torch.equal(after, truth)
        seen += 1
        for slot in (0, 1, 2):
            lane.release(slot)
    return wrong, seen


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - MOE))
def test_a_node_has_the_bits_of_its_chain(family: str, tiny_folder: Callable[..., Path]) -> None:
    lane = TorchLane(tiny_folder(FAMILIES[family]()), dtype="float32", slots=3, context=126)
    wrong, seen = differing(lane, random.Random(family))
    assert seen > 20
    assert wrong == 0
    lane.check(())


@builds
@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma2", "gpt2"])
def test_with_kernels_of_our_own(family: str, tiny_folder: Callable[..., Path]) -> None:
    lane = TorchLane(tiny_folder(FAMILIES[family]()), dtype="float32", slots=3, context=126, compiled=True)
    assert differing(lane, random.Random(family))[0] == 0


def test_in_bfloat16(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(FAMILIES["gemma3"](), torch.bfloat16)
    assert differing(TorchLane(folder, dtype="bfloat16", slots=3, context=126), random.Random(2))[0] == 0


@pytest.mark.parametrize("family", ["llama", "mistral_sliding"])
def test_a_naive_kernel_is_found_out(family: str, tiny_folder: Callable[..., Path], monkeypatch) -> None:
    lane = TorchLane(tiny_folder(FAMILIES[family]()), dtype="float32", slots=3, context=126)
    TWINS["scattered paths"](monkeypatch)
    wrong, seen = differing(lane, random.Random(5))
    assert 0 < wrong < seen


@pytest.mark.parametrize("compiled", COMPILED)
def test_random_trees_rolled_back_and_forked(tiny_folder: Callable[..., Path], compiled: bool) -> None:
    """Forty operations: a node's bits are those of its tokens in an empty slot."""
    lane = TorchLane(tiny_folder(FAMILIES["llama"]()), dtype="float32", slots=4, context=126, compiled=compiled)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def truth(tokens: list[int]) -> torch.Tensor:
        if tuple(tokens) not in known:
            chunk = Chunk(3, 0, tuple(tokens[:-1]), TokenTree.root(tokens[-1]))
            known[tuple(tokens)] = lane.forward([chunk], Needs()).logits_MV[0].clone()
            lane.release(3)
        return known[tuple(tokens)]

    assert exercise(lane, 3, random.Random(4), truth, range(5, 9), steps=40) > 100
