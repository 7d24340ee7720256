"""The best set of nodes, against enumeration of every set; and that one formula fits both kinds of device."""

from __future__ import annotations

import itertools
import random

import pytest

from raydecode.drafters.token_recycling import template
from raydecode.engine.shape import best
from raydecode.tree import TokenTree
from tests.engine.curves import cpu, gpu


def random_tree(draw, nodes):
    parent = [-1, *(draw.randrange(i) for i in range(1, nodes + 1))]
    return TokenTree(tuple(range(nodes + 1)), tuple(parent), (1.0, *(draw.random() for _ in range(nodes))))


def reach(tree, rate):
    """The product of the rates along each path."""
    out = [1.0]
    for node in range(1, len(tree)):
        out.append(out[tree.parent[node]] * rate[node])
    return out


def closed(tree, keep):
    return all(tree.parent[node] in keep for node in keep if node)


def enumerated(trees, reaches, seconds):
    """max over all sets that are closed under parents: (tokens per second, set)."""
    nodes = [(row, node) for row, tree in enumerate(trees) for node in range(1, len(tree))]
    found = []
    for size in range(len(nodes) + 1):
        for chosen in itertools.combinations(nodes, size):
            keep = [{0, *(node for r, node in chosen if r == row)} for row in range(len(trees))]
            if all(closed(tree, some) for tree, some in zip(trees, keep, strict=True)):
                tokens = len(trees) + sum(reaches[row][node] for row, node in chosen)
                found.append(tokens / seconds(size))
    return max(found)


def worth(got, seconds):
    size = sum(len(keep) - 1 for keep in got.keep)
    assert got.seconds == seconds(size)
    return got.tokens / got.seconds


def cases():
    draw = random.Random(5)
    for _ in range(60):
        trees = [random_tree(draw, draw.randrange(1, 5)) for _ in range(draw.choice([1, 2]))]
        reaches = [reach(tree, tree.est) for tree in trees]
        cost = [1.0, *(1.0 + draw.choice([0.02, 0.2, 0.6]) * n + draw.random() * 0.3 for n in range(1, 12))]
        yield trees, reaches, cost.__getitem__


def test_it_is_the_best_of_all_sets():
    """Costs that are not monotone included: 2 tokens may cost more than 4."""
    for trees, reaches, seconds in cases():
        got = best(reaches, seconds, margin=1.0)
        for tree, keep in zip(trees, got.keep, strict=True):
            assert closed(tree, set(keep))
            assert tree.only(keep).check(100) is None
        assert worth(got, seconds) == pytest.approx(enumerated(trees, reaches, seconds))


def test_a_twin_that_ignores_the_cost_is_caught():
    """Keeping every node that is likelier than not: right somewhere, wrong in these cases."""
    wrong = 0
    for trees, reaches, seconds in cases():
        keep = [[n for n, r in enumerate(reach_N) if n == 0 or r > 0.5] for reach_N in reaches]
        size = sum(len(some) - 1 for some in keep)
        tokens = len(trees) + sum(r for reach_N in reaches for n, r in enumerate(reach_N) if n and r > 0.5)
        wrong += tokens / seconds(size) < 0.97 * enumerated(trees, reaches, seconds)
    assert wrong > 10


def test_plain_decoding_is_a_choice_and_wins_ties_within_the_margin():
    assert best([[1.0, 0.9]], lambda n: 1.0 + n).keep == ((0,),)
    assert best([[1.0, 0.01]], lambda n: 1.0).keep == ((0,),), "one percent is no reason"
    assert best([[1.0, 0.5]], lambda n: 1.0).keep == ((0, 1),)


def test_rows_without_a_tree_count():
    """They wait for the call as well: what pays one row alone does not pay if seven others wait."""
    seconds = lambda n: 1.0 + 0.2 * n  # noqa: E731
    assert len(best([[1.0, 0.6]], seconds).keep[0]) == 2
    assert len(best([[1.0, 0.6]], seconds, others=7).keep[0]) == 1


def recycling(better=1.0, nodes=96):
    """Token Recycling's tree, each token `better` times as likely as its card says (2.7 tokens per call of 80 nodes, as
    published for a warm table)."""
    token, parent, rate = [0], [-1], [1.0]
    for above, _, one in template(8, nodes):
        token.append(len(token))
        parent.append(above)
        rate.append(one * better)
    tree = TokenTree(tuple(token), tuple(parent), tuple(rate))
    return tree, reach(tree, rate)


@pytest.mark.parametrize(("better", "least"), [(1.0, 4), (1.2, 8), (1.6, 8)])
def test_one_formula_finds_a_small_tree_on_a_processor_and_a_large_one_on_an_accelerator(better, least):
    _, reach_N = recycling(better)
    small = best([reach_N], cpu().table(1, 1, 96).__getitem__)
    large = best([reach_N], gpu().table(1, 1, 96).__getitem__)
    assert least <= len(small.keep[0]) - 1 <= 16
    assert 64 <= len(large.keep[0]) - 1 <= 80


def test_the_tree_shrinks_with_the_batch():
    _, reach_N = recycling(1.2)
    sizes = []
    for rows in (1, 2, 4, 8, 16, 32):
        got = best([reach_N] * rows, cpu().table(rows, rows, 96 * rows).__getitem__)
        sizes.append(sum(len(keep) - 1 for keep in got.keep) / rows)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 8
    assert sizes[-1] <= 1


def test_rows_share_the_call_by_their_own_chances():
    likely, unlikely = [1.0, 0.9, 0.8, 0.7], [1.0, 0.3, 0.1, 0.05]
    got = best([likely, unlikely], lambda n: 1.0 + 0.2 * n)
    assert len(got.keep[0]) > len(got.keep[1])
