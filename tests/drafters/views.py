"""A drafter's view of a row, and what it proposes for one, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydecode import registry
from raydecode.contracts import RowView
from raydecode.request import Card, RowId
from raydecode.tree import TokenTree


def view(context: Sequence[int], state: Any = None, ends: Sequence[int] = ()) -> RowView:
    ids = tuple(context)
    return RowView(RowId("r"), 1, ids, ids[-1], len(ids) - 1, state, 99, ends=frozenset(ends))


def propose(name: str, contexts: Sequence[Sequence[int]], budget: int = 16, ends: Sequence[int] = (), **options: Any):
    """The tree after the last of the contexts, each of which begins with the one before."""
    method = registry.get("drafters", name)
    full = method.parse(Card(name, options), "options").options
    drafter = method.factory()
    shared, state, tree = drafter.open_shared(), drafter.open(view(contexts[0]), full), None
    for context in contexts:
        try:
            next(drafter.propose([view(context, state, ends)], [budget], shared, full))
        except StopIteration as done:
            (tree,) = done.value
    assert isinstance(tree, TokenTree)
    assert tree.check(1000, frozenset(ends)) is None
    assert len(tree) <= budget + 1
    return tree
