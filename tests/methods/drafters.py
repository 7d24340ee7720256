"""Drafters for tests: one that helps (token recycling), and adversaries. None may change a text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from raydecode.contracts import Forward, Needs, NodeOut, Options, RowView, StepRecord
from raydecode.engine.toy import EOS, VOCAB
from raydecode.randomness import derive
from raydecode.tree import TokenTree

Proposal = Generator[Forward, list[NodeOut], list[TokenTree]]


class Drafting:
    """What the test drafters share; a subclass says what tree a row gets."""

    needs = Needs()
    scope = "row"

    def open_shared(self) -> Any:
        return None

    def open(self, row: RowView, options: Options) -> Any:
        return 0

    def tree(self, row: RowView, budget: int, shared: Any) -> Any:
        return TokenTree.root(row.pending)

    def propose(self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options) -> Proposal:
        return [self.tree(row, budget, shared) for row, budget in zip(rows, budgets, strict=True)]
        yield

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Options) -> list[Any]:
        return [record.state for record in records]


class Recycling(Drafting):
    """Token recycling (arXiv:2408.08696): the two likeliest followers of every verified token, three levels deep."""

    needs = Needs(top_k=2, top_k_nodes="all")
    scope = "namespace"

    def open_shared(self) -> dict[int, tuple[int, ...]]:
        return {}

    def tree(self, row: RowView, budget: int, shared: dict[int, tuple[int, ...]]) -> TokenTree:
        paths, frontier = [], [()]
        for _ in range(3):
            ends = [(path, (path or (row.pending,))[-1]) for path in frontier]
            frontier = [(*path, token) for path, end in ends if end != EOS for token in shared.get(end, ())]
            paths += frontier
        return TokenTree.paths(row.pending, paths)

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Options) -> list[Any]:
        for record in records:
            for node, ids in record.top_ids.items():
                shared[record.tree.token[node]] = ids
        return [record.state for record in records]


class Constant(Drafting):
    """Always "abab"."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        return TokenTree.chain((row.pending, 0, 1, 0, 1)[: budget + 1])


class AlwaysEos(Drafting):
    """Always the end of the text."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        return TokenTree.chain((row.pending, EOS))


class Maximal(Drafting):
    """Every continuation of three tokens: far over budget, and always partly right."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        letters = range(VOCAB - 1)
        return TokenTree.paths(row.pending, [(a, b, c) for a in letters for b in letters for c in letters])


class RandomPaths(Drafting):
    """Random trees, from a hash of the row's context."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        key = derive(5, *row.context)
        paths = [
            tuple(derive(key, path, i) % (VOCAB - 1) for i in range(1 + derive(key, path) % 5))
            for path in range(key % 7)
        ]
        return TokenTree.paths(row.pending, paths)


class Hostile(Drafting):
    """An invalid answer of another kind at every position."""

    def tree(self, row: RowView, budget: int, shared: Any) -> Any:
        root = row.pending
        match row.t % 9:
            case 0:
                return TokenTree((root, 1, 1), (-1, 0, 0), (1.0, 1.0, 1.0))  # twins
            case 1:
                return TokenTree((root, 99), (-1, 0), (1.0, 1.0))  # outside the vocabulary
            case 2:
                return TokenTree((root, 1, 2), (-1, 2, 0), (1.0, 1.0, 1.0))  # a parent after its child
            case 3:
                return TokenTree(((root + 1) % VOCAB, 1), (-1, 0), (1.0, 1.0))  # another root
            case 4:
                return TokenTree((), (), ())
            case 5:
                return None
            case 6:
                return TokenTree((root, 1.0), (-1, 0), (1.0, 1.0))  # type: ignore[arg-type]
            case 7:
                return TokenTree((root, EOS, 1), (-1, 0, 1), (1.0, 1.0, 1.0))  # below the end
            case _:
                raise RuntimeError("boom")


class FewerTrees(Drafting):
    """Forgets a row."""

    def propose(self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options) -> Proposal:
        return [TokenTree.chain((row.pending, 0)) for row in rows[1:]]
        yield


class Blind(Constant):
    """Proposes, and raises when it is told what came of it."""

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Options) -> list[Any]:
        raise RuntimeError("no eyes")


class Closed(Drafting):
    """Raises before it begins."""

    def open_shared(self) -> Any:
        raise RuntimeError("no room")


class Wishful(Drafting):
    """Asks for a forward of a lane that nobody gave it."""

    def propose(self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options) -> Proposal:
        yield Forward("draft:none", tuple((row.id, ()) for row in rows))
        return []


HONEST = (Recycling,)
TWINS = (Drafting, Constant, AlwaysEos, Maximal, RandomPaths, Hostile, FewerTrees, Blind, Closed, Wishful)
