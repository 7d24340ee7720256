"""Token Recycling (Luo et al., arXiv:2408.08696): the likeliest followers of a token, as last seen, drafted as a tree.

Table M: token -> its k likeliest next tokens, in order, when the model last verified it anywhere. After every step
M[token(i)] <- top_k(logits_i) for all verified nodes i, accepted or not, in node order (the last of equal tokens wins).
With `prompt` the prompt's tokens teach it likewise, while the prompt is read. The draft is a fixed tree of rank paths:
token(node) = M[token(parent)][rank(node)], layer by layer. A token that was never verified has no followers, so its
branches are left out and no placeholder is drafted.

The paper's tree has 80 nodes, which costs a CPU six plain steps. Ours is made for any number of nodes, as the set of
rank paths likeliest to be accepted: the `nodes` greatest products of RATE along the path (ties: less deep, lower rank).

Changes the text: never. State: M, shared by all rows of the engine (an engine serves one job, so one owner) or the
row's own; int32, k per token up to the largest id seen: 1.6 to 2 MB at 49,152 tokens and k = 8. Cost: one slice per
inner node and the top k of every verified node; with `prompt` the output layer behind every token of the prompt.
"""

from __future__ import annotations

import functools
import heapq
from array import array
from collections.abc import Generator, Sequence

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree

RATE = (0.44, 0.12, 0.06, 0.04, 0.03, 0.02, 0.015, 0.01)
"""P(a node of this rank is accepted | its parent is), later ranks share the last. Assumed, for a warm table: only the
order of their products matters. A cold one measured 0.15, 0.07, 0.07 for the first three (docs/log.md)."""


class Table:
    """token -> its k followers. Stored as id + 1 in one flat array, so that 0 says unseen."""

    def __init__(self) -> None:
        self.k = 0
        self.flat = array("i")

    def put(self, token: int, followers: Sequence[int]) -> None:
        if not self.k:
            self.k = len(followers)
        missing = (token + 1) * self.k - len(self.flat)
        if missing > 0:
            self.flat.frombytes(bytes(self.flat.itemsize * max(missing, len(self.flat) // 4)))
        self.flat[token * self.k : (token + 1) * self.k] = array("i", [id + 1 for id in followers])

    def get(self, token: int) -> Sequence[int]:
        """Ids + 1 of the followers, likeliest first; empty, or zeros, for a token never seen."""
        return self.flat[token * self.k : (token + 1) * self.k]


@registry.register("drafters", paper="arXiv:2408.08696", exact=True)
class TokenRecycling:
    """Token Recycling: draft a tree of each token's last seen likeliest followers."""

    class Options(registry.Options):
        k: int = Field(default=8, ge=1, le=64, description="followers kept per token", examples=[8, 2])
        nodes: int = Field(default=12, ge=1, le=256, description="drafted tokens per step", examples=[12, 3])
        prompt: bool = Field(
            default=False, description="learn from the prompt, which takes longer to read", examples=[True, False]
        )
        shared: bool = Field(default=True, description="one table for all rows of the engine, else one per row")

    widest = {"nodes": 96}
    needs = Needs(top_k=1, top_k_nodes="all")
    scope = "namespace"

    @staticmethod
    def needs_of(options: Given, sites: Sequence[str]) -> Needs:
        return Needs(top_k=options["k"], prompt=options["prompt"])

    def open_shared(self) -> dict[int, Table]:
        return {}

    def open(self, row: RowView, options: Given) -> Table | None:
        return None if options["shared"] else Table()

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: dict[int, Table], options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        shapes = (template(options["k"], min(budget, options["nodes"])) for budget in budgets)
        return [_tree(row, _table(row.state, shared, options), shape) for row, shape in zip(rows, shapes, strict=True)]
        yield

    def observe(self, records: Sequence[StepRecord], shared: dict[int, Table], options: Given) -> list[Table | None]:
        for record in records:
            table = _table(record.state, shared, options)
            for node in sorted(record.top_ids):
                table.put(record.tree.token[node], record.top_ids[node])
        return [record.state for record in records]

    def size(self, state: Table | None, shared: dict[int, Table], options: Given) -> int:
        """Bytes of the row's table, or of the shared one."""
        flat = _table(state, shared, options).flat
        return len(flat) * flat.itemsize


@functools.cache
def template(k: int, nodes: int) -> tuple[tuple[int, int, float], ...]:
    """(parent, rank, rate) of the nodes below the root, parents first; entry i is node i + 1 of the tree."""
    out: list[tuple[int, int, float]] = []
    heap = [(-RATE[0], 1, 0, 0)]  # -product, depth, rank, parent
    while len(out) < nodes:
        product, depth, rank, parent = heapq.heappop(heap)
        rate = RATE[min(rank, len(RATE) - 1)]
        out.append((parent, rank, rate))
        heapq.heappush(heap, (product * RATE[0], depth + 1, 0, len(out)))
        if rank + 1 < k:
            heapq.heappush(heap, (product / rate * RATE[min(rank + 1, len(RATE) - 1)], depth, rank + 1, parent))
    return tuple(out)


def _table(state: Table | None, shared: dict[int, Table], options: Given) -> Table:
    """The row's own, or the one of all rows with this k."""
    return state if state is not None else shared.setdefault(options["k"], Table())


def _tree(row: RowView, table: Table, shape: Sequence[tuple[int, int, float]]) -> TokenTree:
    token, parent, est = [row.pending], [-1], [1.0]
    followers = [table.get(row.pending)]
    new = [0]  # node of the template -> node of the tree, -1 where it is left out
    for above, rank, rate in shape:
        at = new[above]
        known = followers[at] if at >= 0 else ()
        if rank >= len(known) or not known[rank]:
            new.append(-1)
            continue
        new.append(len(token))
        token.append(known[rank] - 1)
        parent.append(at)
        est.append(rate)
        followers.append(() if token[-1] in row.ends else table.get(token[-1]))
    return TokenTree(tuple(token), tuple(parent), tuple(est))
