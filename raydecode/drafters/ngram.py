"""Prompt lookup (Saxena 2023; n-gram speculation of vLLM): what followed the last n tokens the last time.

For n = longest, ..., shortest: the most recent earlier place where the text's last n tokens stand, followed by at least
one token; the first n with such a place drafts a chain of up to `tokens` ids copied from there. The copy may run into
what it has itself drafted, as in Lempel-Ziv, so that a text that repeats with period p is drafted at any length.

est = n / (n + 1) for every token of the chain: a longer match is a better one.

Changes the text: never (point guesses, verified by the engine's walk). State: per row, one dictionary per n from
n-gram to the place behind its last occurrence: at most one entry per token of the row and n. Cost: `longest` insertions
per new token and at most as many look-ups per step; nothing is scanned.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from typing import Any

from pydantic import Field, model_validator

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree


class Places:
    """n-gram -> index of the token behind its most recent occurrence; the text's own end is no occurrence."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.of: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}
        self.read = 0

    def catch_up(self, context: Sequence[int]) -> None:
        """Enter every n-gram that has a token behind it."""
        for at in range(max(self.read, 1), len(context)):
            for n, places in self.of.items():
                if at >= n:
                    places[tuple(context[at - n : at])] = at
        self.read = len(context)

    def longest(self, context: Sequence[int]) -> tuple[int, int] | None:
        """Where the continuation of the longest known end of `context` begins, and how long that end is."""
        for n, places in self.of.items():
            at = places.get(tuple(context[-n:])) if len(context) >= n else None
            if at is not None:
                return at, n
        return None


@registry.register("drafters", paper="github.com/apoorvumang/prompt-lookup-decoding, 2023", exact=True)
class Ngram:
    """Prompt lookup: draft what followed the same last tokens earlier in the row."""

    class Options(registry.Options):
        longest: int = Field(default=4, ge=1, le=16, description="n-grams of this many tokens first", examples=[4, 2])
        shortest: int = Field(default=2, ge=1, le=16, description="and of this many last", examples=[2, 1])
        tokens: int = Field(default=10, ge=1, le=64, description="most drafted tokens", examples=[10, 1])

        @model_validator(mode="after")
        def _ordered(self) -> Ngram.Options:
            if self.shortest > self.longest:
                raise ValueError(f"shortest {self.shortest} is more than longest {self.longest}")
            return self

    widest = {"tokens": 64}
    needs = Needs()
    scope = "row"

    def open_shared(self) -> None:
        return None

    def open(self, row: RowView, options: Given) -> Places:
        return Places(options["shortest"], options["longest"])

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        return [_tree(row, min(budget, options["tokens"])) for row, budget in zip(rows, budgets, strict=True)]
        yield

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Given) -> list[Any]:
        return [record.state for record in records]

    def size(self, state: Places, shared: Any, options: Given) -> int:
        """Bytes: the tables, their keys (tuples of n small ints) and values."""
        return sum(sys.getsizeof(one) + len(one) * (40 + 8 * n + 32) for n, one in state.of.items())


def _tree(row: RowView, budget: int) -> TokenTree:
    places, chain = row.state, [row.pending]
    places.catch_up(row.context)
    match = places.longest(row.context)
    if match is not None:
        at, n = match
        ahead = row.context[at : at + budget]
        while len(chain) <= budget:
            chain.append(ahead[len(chain) - 1] if len(chain) <= len(ahead) else chain[len(chain) - len(ahead)])
            if chain[-1] in row.ends:
                break
        tree = TokenTree.chain(chain)
        return TokenTree(tree.token, tree.parent, (1.0, *(n / (n + 1) for _ in chain[1:])))
    return TokenTree.root(row.pending)
