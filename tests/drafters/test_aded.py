"""ADED: the table against a recount, the search against a slow reading of its formula, and what it must not do."""

from __future__ import annotations

import math
import random

import pytest

from raydecode import registry
from raydecode.drafters.aded import C2, WIDTH, learn, search
from raydecode.request import Card
from tests.drafters.views import propose


def options(**given):
    return registry.get("drafters", "aded").parse(Card("aded", given), "options").options


def some_text(seed=4, letters=4, length=120):
    make = random.Random(seed)
    return [make.randrange(letters) for _ in range(length)]


def test_every_position_counts_once_however_the_text_arrives():
    text, table = some_text(), {}
    for start, end in [(0, 7), (7, 8), (8, 40), (40, 120)]:
        learn(table, text[:end], start, 0.9, 1 << 10)
    for pair in {(u, v) for u in range(4) for v in range(4)}:
        after = [text[i] for i in range(2, 120) if (text[i - 2], text[i - 1]) == pair]
        expected = {w: sum(0.9 ** (len(after) - 1 - i) for i, x in enumerate(after) if x == w) for w in set(after)}
        assert table.get(pair, {}) == pytest.approx(expected)


def test_table_is_bounded():
    table = {}
    learn(table, some_text(letters=30, length=3000), 0, 0.9, 50)
    assert len(table) == 50
    crowd = [token for i in range(40) for token in (1, 2, 10 + i)]
    learn(table, crowd, 0, 0.9, 50)
    assert len(table[1, 2]) == WIDTH
    assert 49 in table[1, 2], "the newest stays"


def slow_search(table, pair, visits, horizon, c):
    """Paths -> visits: the formula, with every quantity recomputed from the list of past walks."""
    walks: list[tuple[tuple[int, ...], float]] = []

    def prior(path):
        weights = table[(*pair, *path)[-3:-1]]
        return weights[path[-1]] / sum(weights.values())

    for _ in range(visits):
        path, opened = (), {()} if walks else set()
        opened |= {walk for walk, _ in walks}
        while path in opened and len(path) < horizon and table.get((*pair, *path)[-2:]):
            mine = [(w, r) for w, r in walks if w[: len(path)] == path]
            scores = {}
            for token in table[(*pair, *path)[-2:]]:
                child = (*path, token)
                below = [r for w, r in mine if w[: len(child)] == child]
                explore = (c + math.log((len(mine) + C2 + 1) / C2)) * math.sqrt(len(mine))
                exploit = sum(below) / len(below) if below else 0.0
                scores[token] = exploit + explore * prior(child) / (1 + len(below))
            path = (*path, max(scores, key=lambda token: (round(scores[token], 9), prior((*path, token)), -token)))
        walk, reward = path, sum(math.prod(prior(path[:j]) for j in range(1, i + 1)) for i in range(1, len(path) + 1))
        while len(walk) < horizon and table.get((*pair, *walk)[-2:]):
            weights = table[(*pair, *walk)[-2:]]
            walk = (*walk, max(weights, key=lambda token: (weights[token], -token)))
            reward += math.prod(prior(walk[:j]) for j in range(1, len(walk) + 1))
        walks.append((path, reward / horizon))
    return {p: sum(w[: len(p)] == p for w, _ in walks) for p in {w[:i] for w, _ in walks for i in range(len(w) + 1)}}


def visited(table, pair, **given):
    nodes = search(table, pair, options(**given), frozenset())
    paths = [()]
    for node in nodes[1:]:
        paths.append((*paths[node.parent], node.token))
    return {path: node.visits for path, node in zip(paths, nodes, strict=True) if node.visits}


@pytest.mark.parametrize("seed", range(4))
def test_search_is_its_formula(seed):
    table: dict = {}
    learn(table, some_text(seed, length=40), 0, 0.9, 99)
    pair = next(iter(table))
    found = visited(table, pair, visits=20, horizon=3, exploration=1.0)
    assert found == slow_search(table, pair, 20, 3, 1.0)
    assert len(found) > 4


def test_exploration_widens_and_its_absence_is_found_out():
    table = {(1, 2): {3: 8.0, 4: 1.0, 5: 1.0}, (2, 3): {6: 1.0}, (3, 6): {7: 1.0}}
    narrow = visited(table, (1, 2), visits=16, exploration=0.0)
    wide = visited(table, (1, 2), visits=16, exploration=32.0)
    assert narrow != slow_search(table, (1, 2), 16, 6, 32.0)
    assert sum(n for path, n in wide.items() if path[:1] in ((4,), (5,))) > sum(
        n for path, n in narrow.items() if path[:1] in ((4,), (5,))
    )


def test_drafts():
    text = [1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 9, 1, 2]
    tree = propose("aded", [text], horizon=4)
    assert tree.token == (2, 3, 4, 5, 9)
    assert propose("aded", [text], nodes=2).token == (2, 3, 4)
    assert propose("aded", [text], budget=0).token == (2,)
    assert propose("aded", [text], ends=(4,)).token == (2, 3, 4)
    assert propose("aded", [[7]]).token == (7,), "an empty table drafts nothing"
    assert propose("aded", [[7, 8, 9]]).token == (9,)
