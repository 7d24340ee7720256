"""Suffix decoding (Oliaro et al., arXiv:2411.04975): continue the text as it, or another output, went on before.

For every length l for which the text's last l tokens occur earlier, the occurrences are the leaves below one node of a
suffix tree, and what stands behind them are its branches. With c(path) occurrences of match + path:

    est(child of a node at depth d) = c(child) / c(node) * (l + d) / (l + d + 1)
    draft: best first by the product of est, down to `floor`, at most factor * l nodes; score = sum of the products

The draft with the best score is taken, over all l and over two stores: the row's own prompt and output, and the outputs
of all rows of the engine (shared). The paper has no second factor; without it a single occurrence is certain, however
short the match. The tree is not stored: bigram -> its last OCCURRENCES places is, and the nodes that a step needs are
made from these, so memory is one place per token where a tree of depth 24 has up to 24 nodes.

Changes the text: never. State: both stores; the shared one holds `capacity` tokens, the oldest outputs go first. An
engine serves one job, so one owner; `shared: false` for rows that must not show what other rows said in their timing.
Cost: at most OCCURRENCES * depth comparisons and OCCURRENCES * nodes look-ups per store and step.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree

OCCURRENCES = 48
"""Most recent places kept per bigram."""
SHIFT = 32
"""A place is (number of its text) << SHIFT | index in the text."""


class Store:
    """Texts that grow, and where each bigram was followed by something. capacity: most tokens, 0 = no bound."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity, self.tokens, self.made = capacity, 0, 0
        self.texts: dict[int, array[int]] = {}
        self.places: dict[tuple[int, int], deque[int]] = {}

    def grow(self, text: int | None, tokens: Sequence[int]) -> int:
        """Put tokens behind a text, or behind a new one if it is None or gone; its number."""
        if text is None or text not in self.texts:
            text, self.made = self.made, self.made + 1
            self.texts[text] = array("q")
        ids = self.texts[text]
        for token in tokens:
            if len(ids) > 1:
                key = (ids[-2], ids[-1])
                self.places.setdefault(key, deque(maxlen=OCCURRENCES)).append(text << SHIFT | len(ids))
            ids.append(token)
        self.tokens += len(tokens)
        while self.capacity and self.tokens > self.capacity:
            self._drop(next(iter(self.texts)))
        return text

    def matches(self, context: Sequence[int], depth: int) -> Iterator[tuple[int, list[tuple[array[int], int]]]]:
        """(l, places behind the context's last l tokens), for each l at which there are more places than above it."""
        if len(context) < 2:
            return
        by_length: dict[int, list[tuple[array[int], int]]] = {}
        for place in self.places.get((context[-2], context[-1]), ()):
            ids, at = self.texts[place >> SHIFT], place & ((1 << SHIFT) - 1)
            length, most = 2, min(depth, at, len(context))
            while length < most and ids[at - length - 1] == context[-length - 1]:
                length += 1
            by_length.setdefault(length, []).append((ids, at))
        found: list[tuple[array[int], int]] = []
        for length in sorted(by_length, reverse=True):
            found = found + by_length[length]
            yield length, found

    def size(self) -> int:
        """Bytes: texts, and the table of places (a deque block of 64 pointers, a key of two, an int per place)."""
        texts = sum(len(ids) * ids.itemsize for ids in self.texts.values())
        return texts + sys.getsizeof(self.places) + len(self.places) * 830 + min(self.tokens, 1 << 62) * 32

    def _drop(self, text: int) -> None:
        ids = self.texts.pop(text)
        self.tokens -= len(ids)
        for key in set(itertools.pairwise(ids)):
            kept = [place for place in self.places.pop(key, ()) if place >> SHIFT != text]
            if kept:
                self.places[key] = deque(kept, maxlen=OCCURRENCES)


@dataclass(slots=True)
class Memory:
    """A row's state. own: its text, read up to `read`; output: its number among the shared texts."""

    own: Store = field(default_factory=Store)
    read: int = 0
    output: int | None = None


@registry.register("drafters", paper="arXiv:2411.04975", exact=True)
class Suffix:
    """Suffix decoding: continue as the row itself, or earlier outputs, went on after the same tokens."""

    class Options(registry.Options):
        tokens: int = Field(default=16, ge=1, le=256, description="most drafted tokens", examples=[16, 2])
        factor: float = Field(default=1.0, gt=0, le=16, description="drafted tokens per matched token", examples=[1.0])
        floor: float = Field(default=0.1, gt=0, le=1, description="least estimated chance of a node", examples=[0.1])
        depth: int = Field(default=24, ge=2, le=256, description="longest match, tokens", examples=[24, 3])
        shared: bool = Field(default=True, description="look into the outputs of the engine's other rows too")
        capacity: int = Field(
            default=1 << 18, ge=1, le=1 << 28, description="tokens of shared outputs kept", examples=[1 << 18, 20]
        )

    widest = {"tokens": 64, "floor": 0.02, "factor": 4.0}
    needs = Needs()
    scope = "namespace"

    def open_shared(self) -> dict[int, Store]:
        return {}

    def open(self, row: RowView, options: Given) -> Memory:
        return Memory()

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: dict[int, Store], options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        return [_tree(row, budget, _of(shared, options), options) for row, budget in zip(rows, budgets, strict=True)]
        yield

    def observe(self, records: Sequence[StepRecord], shared: dict[int, Store], options: Given) -> list[Any]:
        for record in records:
            store = _of(shared, options)
            if store is not None and record.state is not None:
                record.state.output = store.grow(record.state.output, record.emitted)
        return [record.state for record in records]

    def size(self, state: Memory | None, shared: dict[int, Store], options: Given) -> int:
        """Bytes of the row's own store and the shared one."""
        store = _of(shared, options)
        return (state.own.size() if state else 0) + (store.size() if store else 0)


def _of(shared: dict[int, Store], options: Given) -> Store | None:
    """The outputs of all rows with this capacity."""
    if not options["shared"]:
        return None
    return shared.setdefault(options["capacity"], Store(options["capacity"]))


def _tree(row: RowView, budget: int, outputs: Store | None, options: Given) -> TokenTree:
    memory = row.state
    memory.own.grow(0 if memory.read else None, row.context[memory.read :])
    memory.read = len(row.context)
    best, most = TokenTree.root(row.pending), 0.0
    for store in [memory.own] if outputs is None else [memory.own, outputs]:
        for length, places in store.matches(row.context, options["depth"]):
            size = min(budget, options["tokens"], int(options["factor"] * length + 1e-6))
            tree, score = expand(row.pending, length, places, size, options["floor"], row.ends)
            if score > most:
                best, most = tree, score
    return best


def expand(
    root: int, length: int, places: list[tuple[array[int], int]], size: int, floor: float, ends: frozenset[int]
) -> tuple[TokenTree, float]:
    """The `size` likeliest nodes behind a match of `length` tokens, and their expected number of accepted ones."""
    token, parent, est, score = [root], [-1], [1.0], 0.0
    heap: list[tuple[float, int, int, int, float, list[tuple[array[int], int]]]] = []

    def push(node: int, depth: int, reach: float, at_P: list[tuple[array[int], int]]) -> None:
        """Offer the children of a node; at_P: where in the texts they stand."""
        next_P = [ids[at] for ids, at in at_P if at < len(ids)]
        trust = (length + depth) / (length + depth + 1) / len(at_P)
        for order, (child, count) in enumerate(Counter(next_P).most_common()):
            if reach * count * trust >= floor:
                behind = [(ids, at + 1) for ids, at in at_P if at < len(ids) and ids[at] == child]
                heapq.heappush(heap, (-reach * count * trust, depth, node << 16 | order, child, count * trust, behind))

    push(0, 0, 1.0, places)
    while heap and len(token) <= size:
        product, depth, key, child, rate, behind = heapq.heappop(heap)
        token.append(child)
        parent.append(key >> 16)
        est.append(rate)
        score -= product
        if child not in ends and len(token) <= size:
            push(len(token) - 1, depth + 1, -product, behind)
    return TokenTree(tuple(token), tuple(parent), tuple(est)), score
