"""ADED, adaptive draft-verification (Liu et al., arXiv:2407.12021): trigram statistics on line, searched by PUCT.

Table: (u, v) -> {w: weight}. Every token w that follows u, v in a row's prompt or output is counted once:
all weights of the pair times `memory`, then weight[w] += 1; the WIDTH heaviest stay. The draft is the part of a search
tree that was visited most. A search of `visits` rounds walks from the root to the child with the greatest

    Q / n + (c + ln((N + C2 + 1) / C2)) * P * sqrt(N) / (1 + n)      P = weight / sum of weights, N, n visits of
                                                                      parent and child, Q rewards, c = `exploration`

until it leaves the tree, opens that node's children, and earns the mean over `horizon` steps of the product of P along
the path walked and, from its end, along the likeliest children. est(child) = n / N.

Not the paper's: it begins with trigrams of a corpus, here the table begins empty; it draws roll-outs, here they follow
the likeliest child, so that one table gives one tree; its code counts a trigram once per step in a window of 16 tokens.

Changes the text: never. State: a table for all rows of the engine (one job, one owner) or one per row; at most
`capacity` pairs, the oldest go first. Cost: at most visits * horizon * WIDTH scores per row and step, in Python; with a
young table 0.2 % of the time beside SmolLM2 on one thread (docs/log.md).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree

WIDTH = 12
C2 = 8.0

Trigrams = dict[tuple[int, int], dict[int, float]]


def learn(table: Trigrams, context: Sequence[int], start: int, memory: float, capacity: int) -> None:
    """Count the trigrams that end at `start` or later."""
    for at in range(max(start, 2), len(context)):
        pair = context[at - 2], context[at - 1]
        weights = table.get(pair)
        if weights is None:
            if len(table) >= capacity:
                del table[next(iter(table))]
            weights = table[pair] = {}
        for token in weights:
            weights[token] *= memory
        weights[context[at]] = weights.get(context[at], 0.0) + 1.0
        if len(weights) > WIDTH:
            del weights[min(weights, key=weights.__getitem__)]


@dataclass(slots=True)
class Node:
    """prior: P of this token after its parent's pair; total: rewards of all visits."""

    token: int
    parent: int
    prior: float
    visits: int = 0
    total: float = 0.0
    children: list[int] = field(default_factory=list)
    opened: bool = False


def search(
    table: Mapping[tuple[int, int], Mapping[int, float]], pair: tuple[int, int], options: Given, ends: frozenset[int]
) -> list[Node]:
    """The search tree below the last two tokens; node 0 is the root."""
    nodes, horizon = [Node(pair[1], -1, 1.0)], options["horizon"]
    if pair not in table:
        return nodes
    for _ in range(options["visits"]):
        at, before, path, product, reward = 0, pair[0], [0], 1.0, 0.0
        while nodes[at].opened and nodes[at].children:
            before, at = nodes[at].token, _chosen(nodes, at, options["exploration"])
            path.append(at)
            product *= nodes[at].prior
            reward += product
        here = before, nodes[at].token
        if not nodes[at].opened:
            nodes[at].opened = True
            if len(path) <= horizon and here[1] not in ends:
                total = sum(table.get(here, {}).values())
                for token, weight in sorted(table.get(here, {}).items(), key=lambda one: (-one[1], one[0])):
                    nodes[at].children.append(len(nodes))
                    nodes.append(Node(token, at, weight / total))
        for _ in range(len(path) - 1, horizon):
            weights = table.get(here)
            if not weights or here[1] in ends:
                break
            token = max(weights, key=lambda one: (weights[one], -one))
            product *= weights[token] / sum(weights.values())
            reward += product
            here = here[1], token
        for one in path:
            nodes[one].visits += 1
            nodes[one].total += reward / horizon
    return nodes


def _chosen(nodes: list[Node], at: int, exploration: float) -> int:
    """The child with the greatest score; of equal ones the likelier."""
    seen = nodes[at].visits
    bonus = (exploration + math.log((seen + C2 + 1) / C2)) * math.sqrt(seen)

    def score(child: int) -> float:
        node = nodes[child]
        return (node.total / node.visits if node.visits else 0.0) + bonus * node.prior / (1 + node.visits)

    return max(nodes[at].children, key=score)


@registry.register("drafters", paper="arXiv:2407.12021", exact=True)
class Aded:
    """ADED: draft from trigrams of the texts so far, by a search between likely and untried."""

    class Options(registry.Options):
        nodes: int = Field(default=8, ge=1, le=256, description="drafted tokens per step", examples=[8, 3])
        horizon: int = Field(default=6, ge=1, le=32, description="deepest draft, tokens", examples=[6, 2])
        visits: int = Field(default=32, ge=1, le=1024, description="rounds of the search", examples=[32])
        exploration: float = Field(default=1.25, ge=0, le=100, description="c above", examples=[1.25, 32.0])
        memory: float = Field(
            default=0.9, gt=0, le=1, description="what a weight keeps at each new count", examples=[0.9]
        )
        capacity: int = Field(default=1 << 17, ge=1, le=1 << 26, description="pairs kept", examples=[1 << 17])
        shared: bool = Field(default=True, description="one table for all rows of the engine, else one per row")

    widest = {"nodes": 32}
    needs = Needs()
    scope = "namespace"

    def open_shared(self) -> dict[str, Trigrams]:
        return {}

    def open(self, row: RowView, options: Given) -> Seen:
        return Seen()

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: dict[str, Trigrams], options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        for row in rows:
            table = _table(row.state, shared, options)
            learn(table, row.context, row.state.read, options["memory"], options["capacity"])
            row.state.read = len(row.context)
        pairs = zip(rows, budgets, strict=True)
        return [_tree(row, budget, _table(row.state, shared, options), options) for row, budget in pairs]
        yield

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Given) -> list[Any]:
        return [record.state for record in records]

    def size(self, state: Seen | None, shared: dict[str, Trigrams], options: Given) -> int:
        """Bytes: the table, and per pair its key and a dictionary of ids and weights."""
        table = _table(state, shared, options) if state else {}
        return sys.getsizeof(table) + sum(
            120 + sys.getsizeof(weights) + 56 * len(weights) for weights in table.values()
        )


@dataclass(slots=True)
class Seen:
    """A row's state: how much of its text was counted, and a table where none is shared."""

    read: int = 0
    own: Trigrams = field(default_factory=dict)


def _table(state: Seen, shared: dict[str, Trigrams], options: Given) -> Trigrams:
    """The row's own, or the one of all rows that count alike."""
    if not options["shared"]:
        return state.own
    return shared.setdefault(f"{options['memory']} {options['capacity']}", {})


def _tree(row: RowView, budget: int, table: Trigrams, options: Given) -> TokenTree:
    if len(row.context) < 2:
        return TokenTree.root(row.pending)
    nodes = search(table, (row.context[-2], row.pending), options, row.ends)
    visited = sorted((i for i in range(1, len(nodes)) if nodes[i].visits), key=lambda i: (-nodes[i].visits, i))
    keep = sorted(visited[: min(budget, options["nodes"])])  # a child is younger and no oftener visited than its parent
    new = {0: 0} | {old: i + 1 for i, old in enumerate(keep)}
    est = (nodes[i].visits / nodes[nodes[i].parent].visits for i in keep)
    return TokenTree(
        (row.pending, *(nodes[i].token for i in keep)), (-1, *(new[nodes[i].parent] for i in keep)), (1.0, *est)
    )
