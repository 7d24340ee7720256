"""How often a drafted token is accepted, learned from texts that were never drafted so.

A proposal made before a text goes on can be compared with the text afterwards, whether it was verified or not: the text
does not depend on drafts, so every proposal of every drafter is a fair bet on it. At each node that the text reaches,
each child was accepted or not; nodes behind a wrong token say nothing (they are censored, not counted as wrong).

Rates are kept for ever finer questions and each is drawn to the coarser one above it:

    p(drafter) <- p(drafter, est) <- p(drafter, est, rank, depth) <- p(drafter, est, rank, depth, kind of row)
    p = (accepted + WEIGHT * p above) / (seen + WEIGHT)          accepted, seen *= MEMORY at each sighting

est is the drafter's own word, in eighths: a name for a class of nodes, not a probability. Cost: some dictionary
look-ups per node, kept until REFRESH sightings have passed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from raydecode.tree import TokenTree

PRIOR = 0.2
WEIGHT = 4.0
MEMORY = 0.99
REFRESH = 32
"""Sightings after which rates are worked out anew."""
DEEP, WIDE = 6, 7
"""Depths and ranks from here on are one class."""
WORDS = 8
"""Classes of a drafter's own estimate, besides that of certainty."""


class Acceptance:
    """P(a node is accepted | its parent is), by drafter and class of node."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, list[float]] = {}
        self._known: dict[Hashable, float] = {}
        self._sightings = 0

    def rate(self, drafter: int, depth: int, rank: int, est: float, kind: int) -> float:
        key = drafter, int(est * WORDS), min(rank, WIDE), min(depth, DEEP), kind
        known = self._known.get(key)
        if known is None:
            known = PRIOR
            for one in _classes(*key):
                seen = self._seen.get(one)
                if seen is None:
                    break  # a finer class was not seen either
                known = (seen[0] + WEIGHT * known) / (seen[1] + WEIGHT)
            self._known[key] = known
        return known

    def see(self, drafter: int, depth: int, rank: int, est: float, kind: int, accepted: bool) -> None:
        for key in _classes(drafter, int(est * WORDS), min(rank, WIDE), min(depth, DEEP), kind):
            seen = self._seen.setdefault(key, [0.0, 0.0])
            seen[0] = MEMORY * seen[0] + accepted
            seen[1] = MEMORY * seen[1] + 1.0
        self._sightings += 1
        if self._sightings >= REFRESH:
            self._sightings = 0
            self._known.clear()

    def reach(self, drafter: int, tree: TokenTree, kind: int) -> list[float]:
        """P(accepted) of every node: the product of the rates along its path."""
        out, depth, born = [1.0], [0], [0] * len(tree)
        for parent, est in zip(tree.parent[1:], tree.est[1:], strict=True):
            deep, rank = depth[parent] + 1, born[parent]
            born[parent] = rank + 1
            depth.append(deep)
            out.append(out[parent] * self.rate(drafter, deep, rank, est, kind))
        return out


@dataclass(slots=True)
class Watch:
    """A proposal that the text has followed so far. foreseen: how many of its tokens were expected to be accepted."""

    drafter: int
    tree: TokenTree
    foreseen: float
    node: int = 0
    depth: int = 0

    def follow(self, token: int, rates: Acceptance, kind: int) -> bool:
        """The text goes on with `token`. False when there is nothing left to compare: `depth` tokens were right."""
        tree, found = self.tree, -1
        for rank, child in enumerate(_children(tree.parent, self.node)):
            right = tree.token[child] == token
            rates.see(self.drafter, self.depth + 1, rank, tree.est[child], kind, right)
            if right:
                found = child
        if found < 0:
            return False
        self.node, self.depth = found, self.depth + 1
        return next(_children(tree.parent, found), None) is not None


def _children(parent: tuple[int, ...], node: int) -> Iterator[int]:
    """`tuple.index` looks through hundreds of nodes in the time of a loop's few."""
    at = node
    try:
        while True:
            at = parent.index(node, at + 1)
            yield at
    except ValueError:
        return


def _classes(drafter: int, word: int, rank: int, depth: int, kind: int) -> tuple[Hashable, ...]:
    """From the coarsest to the finest."""
    return drafter, (drafter, word), (drafter, word, rank, depth), (drafter, word, rank, depth, kind)
