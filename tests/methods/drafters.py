"""Drafters for tests: one that helps (token recycling), and adversaries. None may change a text."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from raydecode.contracts import Forward, Needs, NodeOut, Options, RowView, StepRecord
from raydecode.engine.toy import EOS, VOCAB
from raydecode.randomness import derive
from raydecode.request import RowId
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
        return TokenTree.chain((row.pending, min(row.ends, default=EOS)))


class Maximal(Drafting):
    """Every continuation of three tokens: far over budget, and always partly right."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        letters = range(VOCAB - 1)
        return TokenTree.paths(row.pending, [(a, b, c) for a in letters for b in letters for c in letters])


class Brimful(Drafting):
    """As deep as it may, and no deeper: what the row said so far, over and over."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        said = [token for token in row.context if token not in row.ends]
        return TokenTree.chain((row.pending, *(said * (budget // max(len(said), 1) + 1))[:budget]))


class Boastful(Drafting):
    """More than its budget, and estimates that are no numbers to prune by."""

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        tree = TokenTree.paths(row.pending, [(a, b) for a in range(4) for b in range(4)])
        odd = (math.nan, math.inf, -1.0, 2.0, "sure", None)
        return TokenTree(tree.token, tree.parent, tuple(odd[(i + row.t) % len(odd)] for i in range(len(tree))))


class Unopened(Drafting):
    """Raises when a row comes, after it served others."""

    def open(self, row: RowView, options: Options) -> Any:
        if derive(3, *row.context) % 2:
            raise RuntimeError("not this one")
        return 0

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        return TokenTree.chain((row.pending, 0, 1)[: budget + 1])


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


class BadWishes(Drafting):
    """A wish of another kind at every position that may not be; the last kinds never come to an end."""

    needs = Needs(lanes=("self", "toy"))

    def propose(self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options) -> Any:
        row, items = rows[0], tuple((row.id, ()) for row in rows)
        bad = [
            Forward("draft:none", items),
            Forward("self", items, skip=frozenset({"attention.99"})),
            Forward("self", items, skip={"mlp.0"}),  # type: ignore[arg-type]
            Forward("toy", items, skip=frozenset({"mlp.0"})),
            Forward("toy", items, window=3),
            Forward("self", ((RowId("somebody else"), ()),)),
            Forward("self", ()),
            Forward("self", ((row.id, (0,) * 10_000),)),
            Forward("self", ((row.id, (VOCAB,)),)),
            Forward("self", ((row.id, ("a",)),)),  # type: ignore[arg-type]
            Forward("self", ((row.id, (-1,)),)),
            Forward("self", items, top_k=10**6),
            Forward("self", items, top_k=-1),
            Forward("self", items, choose=10**6),
            Forward("self", items, window=10**6),
            Forward("self", items, hidden=("layer.99",)),
            Forward("self", items * 10_000),
            "a forward, please",
            None,
        ]
        kind = row.t % (len(bad) + 2)
        try:
            if kind < len(bad):
                yield bad[kind]
            elif kind == len(bad):
                yield Forward("self", items)
                raise RuntimeError("so that was the answer")
            while True:
                yield Forward("toy" if kind % 2 else "self", items, choose=1)
        finally:
            yield "not yet"


class Ghostwriter(Drafting):
    """Drafts what the row would choose on half a model, branches everywhere, and looks at everything on the way."""

    needs = Needs(lanes=("self", "toy"))

    def propose(self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options) -> Proposal:
        skip, paths = frozenset({"attention.1", "mlp.0"}), [[()] for _ in rows]
        for lane in ("self", "toy", "self"):
            leaves = [(r, path) for r, grown in enumerate(paths) for path in grown if len(path) < rows[r].max_new - 1]
            leaves = [(r, path) for r, path in leaves if not path or path[-1] != EOS][-12:]
            if not leaves:
                break
            items = tuple((rows[r].id, path) for r, path in leaves)
            own = {"skip": skip, "window": 3, "hidden": ("layer.1",)} if lane == "self" else {}
            outs = yield Forward(lane, items, top_k=2, choose=2, **own)
            for (r, path), out in zip(leaves, outs, strict=True):
                paths[r] += [(*path, token) for token in dict.fromkeys((*out.choice, *out.top_ids[:1]))]
        return [TokenTree.paths(row.pending, grown) for row, grown in zip(rows, paths, strict=True)]


HONEST = (Recycling, Ghostwriter)
TWINS = (
    Drafting, Constant, AlwaysEos, Maximal, Brimful, Boastful, Unopened, RandomPaths, Hostile, FewerTrees, Blind,
    Closed, Wishful, BadWishes,
)  # fmt: skip
