"""A lane under random trees: drafts beside each other, kept paths, rollbacks, forks, releases; every node compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Lane
from raydecode.tree import TokenTree


def some_tree(make: random.Random, tokens: Sequence[int]) -> TokenTree:
    """Up to four paths of up to five tokens out of few, so that they share beginnings."""
    paths = [[make.choice(tokens) for _ in range(make.randrange(1, 6))] for _ in range(make.randrange(5))]
    return TokenTree.paths(make.choice(tokens), paths)


def exercise(
    lane: Lane, slots: int, make: random.Random, truth: Callable[[list[int]], Tensor], tokens: Sequence[int], steps: int
) -> int:
    """Random operations on the first `slots` slots, which are free at the end; how many nodes had the bits of `truth`,
    which is told all tokens that lead to a node."""
    held: list[list[int]] = [[] for _ in range(slots)]
    compared = 0
    for _ in range(steps):
        slot = make.randrange(slots)
        mine, what = held[slot], make.choice(("draft", "draft", "draft", "roll back", "fork", "release"))
        if what == "roll back":
            del mine[make.randrange(len(mine) + 1) :]
            lane.keep(slot, len(mine), ())
        elif what == "fork" and mine:
            other, length = (slot + 1) % slots, make.randrange(1, len(mine) + 1)
            lane.fork(slot, other, length)
            held[other] = mine[:length]
        elif what == "release":
            lane.release(slot)
            mine.clear()
        elif what == "draft":
            chunks = []
            for one in make.sample(range(slots), make.randrange(1, slots + 1)):
                prefix = tuple(make.choice(tokens) for _ in range(make.randrange(4)))
                chunk = Chunk(one, len(held[one]), prefix, some_tree(make, tokens))
                end = chunk.start + len(chunk)
                if end <= lane.context and lane.reserve(one, chunk.start, end):
                    chunks.append(chunk)
            if not chunks:
                continue
            found_MV, at = lane.forward(chunks, Needs()).logits_MV.clone(), 0
            for chunk in chunks:
                tree, before = chunk.tree, [*held[chunk.slot], *chunk.prefix]
                assert tree is not None
                for node in range(len(tree)):
                    path = [*before, *(tree.token[i] for i in tree.path(node))]
                    assert torch.equal(found_MV[at + node], truth(path)), f"node {node} of {tree} behind {before}"
                at += len(tree)
                kept = tree.path(make.randrange(len(tree))) if make.random() < 0.8 else ()
                lane.keep(chunk.slot, len(before), kept)
                held[chunk.slot] = [*before, *(tree.token[i] for i in kept)]
            compared += at
    for slot in range(slots):
        lane.release(slot)
    lane.check(())
    return compared
