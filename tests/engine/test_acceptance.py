"""Rates of acceptance from proposals beside the text: each class its own, censored nodes left out."""

from __future__ import annotations

import random

import pytest

from raydecode.engine.acceptance import PRIOR, Acceptance, Watch
from raydecode.tree import TokenTree


def follow(rates, tree, text, kind=0):
    watch = Watch(0, tree, 0.0)
    for token in text:
        if not watch.follow(token, rates, kind):
            break
    return watch.depth


def test_a_watch_follows_the_text():
    tree = TokenTree((9, 1, 2, 3, 4), (-1, 0, 0, 2, 3), (1.0,) * 5)
    assert [follow(Acceptance(), tree, text) for text in ([5], [1], [2, 3, 4, 5], [2, 4], [2, 3])] == [0, 1, 3, 1, 2]


def test_a_watch_ends_where_nothing_hangs():
    watch = Watch(0, TokenTree.chain((9, 1, 2)), 0.0)
    assert watch.follow(1, Acceptance(), 0)
    assert not watch.follow(2, Acceptance(), 0), "the end of the proposal"


@pytest.mark.parametrize("chance", [(0.3, 0.9), (0.5, 0.6)])
def test_rates_by_depth_are_found_and_behind_a_wrong_token_nothing_is_counted(chance):
    """The second token is right with `chance[1]` given the first; counting it where the first was wrong would give the
    product of both."""
    draw, rates = random.Random(2), Acceptance()
    for _ in range(4000):
        right = [draw.random() < p for p in chance]
        follow(rates, TokenTree.chain((9, 1, 1)), [1 if one else 0 for one in right])
    for depth, p in enumerate(chance, 1):
        assert rates.rate(0, depth, 0, 1.0, 0) == pytest.approx(p, abs=0.15)
    assert abs(rates.rate(0, 2, 0, 1.0, 0) - chance[0] * chance[1]) > 0.1


def test_classes_are_apart_and_new_ones_start_from_the_coarser():
    rates, poem, prose = Acceptance(), 1, 2
    assert rates.rate(0, 1, 0, 0.5, poem) == PRIOR
    for _ in range(300):
        rates.see(0, 1, 0, 0.9, poem, True)
        rates.see(0, 1, 1, 0.2, poem, False)
    assert rates.rate(0, 1, 0, 0.9, poem) > 0.9
    assert rates.rate(0, 1, 1, 0.2, poem) < 0.1
    assert rates.rate(0, 1, 0, 0.9, prose) > 0.9, "as other kinds, until it is seen"
    assert 0.3 < rates.rate(0, 1, 5, 0.5, poem) < 0.7, "a class of nodes that was never seen: the drafter's mean"
    assert rates.rate(1, 1, 0, 0.9, poem) == PRIOR, "another drafter"


def test_the_past_is_forgotten():
    rates = Acceptance()
    for right in [True] * 500 + [False] * 400:
        rates.see(0, 1, 0, 1.0, 0, right)
    assert rates.rate(0, 1, 0, 1.0, 0) < 0.1


def test_reach_is_the_product_along_the_path_and_ranks_are_counted_among_siblings():
    rates = Acceptance()
    for _ in range(500):
        rates.see(0, 1, 0, 0.5, 0, True)
        rates.see(0, 1, 1, 0.5, 0, False)
        rates.see(0, 2, 0, 0.5, 0, True)
    tree = TokenTree((0, 1, 2, 3, 4), (-1, 0, 1, 0, 3), (1.0, *(0.5,) * 4))
    first, second, other, below = rates.reach(0, tree, 0)[1:]
    assert first == rates.rate(0, 1, 0, 0.5, 0)
    assert second == first * rates.rate(0, 2, 0, 0.5, 0)
    assert other == rates.rate(0, 1, 1, 0.5, 0) < 0.05
    assert below < other
