"""Rates of acceptance from proposals beside the text: each class its own, censored nodes left out."""

from __future__ import annotations

import random

import pytest

from raydecode.engine.acceptance import PRIOR, Acceptance, Watch
from raydecode.tree import TokenTree


def follow(rates, tree, text, kind=0, watch=Watch):
    one = watch(0, tree, 0.0)
    for token in text:
        if not one.follow(token, rates, kind):
            break
    return one.depth


def test_a_watch_follows_the_text():
    tree = TokenTree((9, 1, 2, 3, 4), (-1, 0, 0, 2, 3), (1.0,) * 5)
    assert [follow(Acceptance(), tree, text) for text in ([5], [1], [2, 3, 4, 5], [2, 4], [2, 3])] == [0, 1, 3, 1, 2]


def test_a_watch_ends_where_nothing_hangs():
    watch = Watch(0, TokenTree.chain((9, 1, 2)), 0.0)
    assert watch.follow(1, Acceptance(), 0)
    assert not watch.follow(2, Acceptance(), 0), "the end of the proposal"


class Counting(Acceptance):
    """Broken: what was drafted counts as accepted."""

    def see(self, drafter, depth, rank, est, kind, accepted):
        super().see(drafter, depth, rank, est, kind, True)


class Uncensored(Watch):
    """Broken: tokens behind a wrong one count as wrong."""

    def follow(self, token, rates, kind):
        going = super().follow(token, rates, kind)
        if not going:
            for depth in range(self.depth + 2, len(self.tree)):
                rates.see(self.drafter, depth, 0, self.tree.est[depth], kind, False)
        return going


def by_depth(chance, rates, watch=Watch, n=4000):
    """Rates of a chain whose tokens are right with `chance`, each given the one before."""
    draw = random.Random(2)
    for _ in range(n):
        right = [draw.random() < p for p in chance]
        follow(rates, TokenTree.chain((9, 1, 1)), [1 if one else 0 for one in right], watch=watch)
    return [rates.rate(0, depth, 0, 1.0, 0) for depth in range(1, len(chance) + 1)]


@pytest.mark.parametrize("chance", [(0.3, 0.9), (0.5, 0.6)])
def test_rates_by_depth_are_found_and_behind_a_wrong_token_nothing_is_counted(chance):
    """The second token is right with `chance[1]` given the first; counting it where the first was wrong would give the
    product of both, counting drafted tokens would give 1."""
    assert by_depth(chance, Acceptance()) == pytest.approx(chance, abs=0.15)
    for rates, watch in ((Counting(), Watch), (Acceptance(), Uncensored)):
        assert by_depth(chance, rates, watch) != pytest.approx(chance, abs=0.15), (rates, watch)


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
