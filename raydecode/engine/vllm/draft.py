"""Our drafters on rows of vLLM's batch, and what verification found. Imports no vLLM.

Drafters that need token ids only run here, each row with its own (`engine/draft.py`, the code of the torch engine).
vLLM verifies chains: of a tree its best path is offered, the one with the most expected accepted tokens

    sum over the path's prefixes of the product of est

vLLM may offer fewer tokens than were drafted (its step's budget of tokens), or none; the text that it shows at the next
proposal says what was accepted. A row is found by its id, not by its slot; what is kept of it is a cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from raydecode import registry
from raydecode.contracts import Drafter
from raydecode.engine.choice import Choice
from raydecode.engine.draft import Drafters
from raydecode.engine.host import ServiceHost
from raydecode.engine.lane import Lane
from raydecode.engine.rounds import Rounds
from raydecode.engine.rows import Row
from raydecode.engine.vllm import own
from raydecode.engine.walk import Methods
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from raydecode.tree import TokenTree

DRAFTS = 16
"""Most drafted tokens per row and step, as on the torch engine."""


@dataclass(frozen=True, slots=True)
class NoLane:
    """vLLM's model as drafters see it: nothing of its inside, and no lane that a wish may name."""

    sites: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Drafting:
    """A row with a drafter. tree: what was offered behind `row.context` as it stood then."""

    row: Row
    tree: TokenTree | None = None


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a row's drafter did: proposals that failed, bytes that it keeps, seconds in it."""

    failures: int = 0
    bytes: int = 0
    seconds: float = 0.0


def wire(id: str, drafter: Card | None, prompt_len: int, limit: int) -> dict[str, Any]:
    """What travels in `SamplingParams.extra_args`. prompt_len: without delivered ids; limit: most output tokens."""
    return {"id": id, "drafter": drafter and drafter.to_json(), "prompt_len": prompt_len, "limit": limit}


class DraftRows:
    """budget: most drafted tokens per row and step. keep: rows that are remembered, the latest ones."""

    def __init__(self, budget: int, vocab_size: int, keep: int) -> None:
        self._vocab_size, self._keep = vocab_size, keep
        self._live: dict[str, Drafter] = {}
        none = Methods(_nothing, _nothing)
        rounds = Rounds(cast(Lane, NoLane()), {}, none, _nothing, cast(ServiceHost, None))
        self._drafters = Drafters(self._drafter, _nothing, rounds, Choice("vllm"), budget=budget)
        self._rows: OrderedDict[str, Drafting] = OrderedDict()

    def propose(
        self, asked: Sequence[Mapping[str, Any]], ids: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """One chain per row behind all its ids so far. asked: `wire` of rows with a drafter; ends: ids that end it."""
        rows = [self._at(*one) for one in zip(asked, ids, ends, strict=True)]
        trees = self._drafters.trees([one.row for one in rows], self._vocab_size, frozenset())
        for one, tree in zip(rows, trees, strict=True):
            one.tree = best_path(tree)
        return [list(one.tree.token[1:]) if one.tree else [] for one in rows]

    def close(self, id: str) -> Drafted:
        """Forget a row."""
        one = self._rows.pop(id, None)
        if one is None:
            return Drafted()
        return Drafted(one.row.draft_failures, self._drafters.size(one.row), one.row.draft_s)

    def _at(self, asked: Mapping[str, Any], ids: Sequence[int], ends: Sequence[int]) -> Drafting:
        """The row, its context caught up with what vLLM has, and its drafter told of what is new."""
        id = asked["id"]
        if id not in self._rows:
            spec = DecodingSpec(drafter=own.card(asked["drafter"]), stop_tokens=tuple(ends))
            request = Request(id, id, Ids(()), spec)
            row = Row(RowId(id), request, spec, 0, list(ids), asked["prompt_len"], asked["limit"])
            self._rows[id] = Drafting(row)
            if len(self._rows) > self._keep:
                self._rows.popitem(last=False)
            return self._rows[id]
        self._rows.move_to_end(id)
        one = self._rows[id]
        row, known = one.row, len(one.row.context)
        if len(ids) < known:
            del row.context[len(ids) :]
            row.drafters.clear()  # their states know more than the text
            one.tree = None
        for record in verified(row.pending, one.tree, ids[known:]):
            self._drafters.observe(row, *record, cast(Any, None), 0)  # no need of these drafters reads the outputs
        row.context.extend(ids[known:])
        return one

    def _drafter(self, name: str) -> Drafter:
        if name not in self._live:
            self._live[name] = registry.get("drafters", name).factory()
        return self._live[name]


def verified(
    pending: int, tree: TokenTree | None, new: Sequence[int]
) -> list[tuple[TokenTree, tuple[int, ...], tuple[int, ...]]]:
    """(tree, path, emitted) of each step that led to the ids `new` behind `pending`: first the chain that was offered,
    as far as it was right and the token behind it; then, where proposals were left out, single tokens."""
    steps, at, last = [], 0, pending
    while at < len(new):
        offered = tree if tree is not None and at == 0 else TokenTree.root(last)
        right = 0
        while right + 1 < min(len(offered), len(new) - at) and offered.token[right + 1] == new[at + right]:
            right += 1
        emitted = tuple(new[at : at + right + 1])
        steps.append((offered, tuple(range(right + 1)), emitted))
        at, last = at + len(emitted), emitted[-1]
    return steps


def best_path(tree: TokenTree) -> TokenTree:
    """The path from the root with the most expected accepted tokens; of equal ones the first."""
    if all(parent == i - 1 for i, parent in enumerate(tree.parent)):
        return tree
    reach, expected = [1.0], [0.0]
    for i in range(1, len(tree)):
        reach.append(reach[tree.parent[i]] * tree.est[i])
        expected.append(expected[tree.parent[i]] + reach[i])
    path = tree.path(max(range(len(tree)), key=lambda i: (expected[i], -i)))
    return TokenTree(
        tuple(tree.token[i] for i in path), tuple(range(-1, len(path) - 1)), tuple(tree.est[i] for i in path)
    )


def _nothing(name: str) -> Any:
    raise AssertionError(f"inside vLLM drafters see token ids only: nobody asks for {name}")
