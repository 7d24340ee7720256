"""Which drafted tokens one call shall verify: the largest expected tokens per second over all rows at once.

    G(S) = (rows + sum of r_i over S) / seconds(S)        r_i = P(node i is accepted), the product along its path

r never rises along a path, so for every size n the best set closed under parents is the n greatest r of all rows, and
G is looked at for every n, 0 (plain decoding) included: the cost may bend either way. A row's share shrinks by itself
where a batch makes each token dearer. A set must promise MARGIN more than plain decoding.

The sum over S is exact for any tree: the accepted path's length is the number of accepted nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MARGIN = 1.08


@dataclass(frozen=True, slots=True)
class Shape:
    """keep: nodes per row, the root included, in order; tokens: how many are expected; seconds: what they cost."""

    keep: tuple[tuple[int, ...], ...]
    tokens: float
    seconds: float


def best(
    reach_RN: Sequence[Sequence[float]], seconds: Callable[[int], float], *, others: int = 0, margin: float = MARGIN
) -> Shape:
    """The best nodes of all rows' trees; seconds(n): of a call with n drafted tokens; others: rows without a tree."""
    rows = len(reach_RN)
    nodes = sorted(
        ((-r, node, row) for row, reach_N in enumerate(reach_RN) for node, r in enumerate(reach_N) if node and r > 0)
    )
    plain = seconds(0)
    expected, size = float(rows + others), 0
    top, at = expected / plain * margin, (expected, plain)
    for n, (minus, _, _) in enumerate(nodes, 1):
        expected -= minus
        cost = seconds(n)
        if expected / cost > top:
            top, size, at = expected / cost, n, (expected, cost)
    keep: list[list[int]] = [[0] for _ in range(rows)]
    for _, node, row in nodes[:size]:
        keep[row].append(node)
    return Shape(tuple(tuple(sorted(some)) for some in keep), *at)
