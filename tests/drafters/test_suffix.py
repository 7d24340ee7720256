"""Suffix decoding against counts over all substrings of all texts, which is what a suffix tree holds."""

from __future__ import annotations

import random

from raydecode.drafters.suffix import OCCURRENCES, Store, expand
from tests.drafters.views import propose


def count(texts, path):
    return sum(text[i : i + len(path)] == list(path) for text in texts for i in range(len(text) - len(path) + 1))


def best_first(texts, end, size, floor, shrink=True):
    """Nodes as paths with their product, from substring counts alone; the text's own end counts for no occurrence."""
    length = len(end)
    here = count([text[:-1] for text in texts], end)
    offers, out = {(): 1.0}, {}
    while offers and len(out) <= size:
        path = max(offers, key=lambda path: (offers[path], -len(path)))
        out[path] = offers.pop(path)
        above = count(texts, (*end, *path)) if path else here
        for token in range(10 if above else 0):
            trust = (length + len(path)) / (length + len(path) + 1) if shrink else 1.0
            reach = out[path] * trust * count(texts, (*end, *path, token)) / above
            if reach >= floor:
                offers[*path, token] = reach
    return {path: reach for path, reach in out.items() if path}


def drafted(texts, end, size, floor):
    """What the store says, in the same form."""
    store = Store()
    for text in texts:
        store.grow(None, text)
    lengths = dict(store.matches(end, len(end)))
    if len(end) not in lengths:
        return {}
    tree, score = expand(end[-1], len(end), lengths[len(end)], size, floor, frozenset())
    out = {}
    for node in range(1, len(tree)):
        path = tree.path(node)[1:]
        reach = 1.0
        for one in path:
            reach *= tree.est[one]
        out[tuple(tree.token[one] for one in path)] = reach
    assert abs(score - sum(out.values())) < 1e-9
    return out


def cases():
    make = random.Random(3)
    for letters in (2, 3, 4) * 8:
        texts = [[make.randrange(letters) for _ in range(make.randrange(3, 14))] for _ in range(4)]
        yield texts, texts[make.randrange(4)][-make.randrange(2, 4) :], make.randrange(1, 9)


def test_trees_are_those_of_the_counts():
    some = 0
    for texts, end, size in cases():
        found, expected = drafted(texts, end, size, 0.1), best_first(texts, end, size, 0.1)
        assert sorted(found.values()) == sorted(expected.values()) or _close(found, expected)
        # of equal products another may be taken last; all that are clearly better must be there
        least = min(expected.values(), default=0.0)
        for path, reach in expected.items():
            if reach > least + 1e-9:
                assert abs(found[path] - reach) < 1e-9
        some += len(found) > 1
    assert some > 10


def _close(found, expected):
    pairs = zip(sorted(found.values()), sorted(expected.values()), strict=True)
    return all(abs(a - b) < 1e-9 for a, b in pairs)


def test_counts_without_the_match_length_are_found_out():
    trees = [(drafted(t, e, s, 0.1), best_first(t, e, s, 0.1, shrink=False)) for t, e, s in cases()]
    assert any(found != expected for found, expected in trees)


def test_the_longer_match_decides():
    """After 5 1 2 came 7 once, after 1 2 came 8 three times; the whole end says 7 first."""
    text = [1, 2, 8, 0, 1, 2, 8, 3, 1, 2, 8, 4, 3, 6, 5, 1, 2, 7, 9, 3, 6, 5, 1, 2]
    assert propose("suffix", [text]).token[:3] == (2, 7, 9)
    assert propose("suffix", [text], depth=2).token[:2] == (2, 8)


def test_budget_and_ends():
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert propose("suffix", [text]).token == (3, 4, 5, 6), "three tokens match, so three are drafted"
    assert propose("suffix", [text], factor=0.4).token == (3, 4)
    assert propose("suffix", [text], budget=0).token == (3,)
    assert propose("suffix", [text], ends=(4,)).token == (3, 4)
    assert propose("suffix", [[1, 2, 3]]).token == (3,)


def test_memory_is_bounded_and_the_oldest_output_goes_first():
    store = Store(capacity=30)
    text = store.grow(None, [1, 2, 3, 4])
    for i in range(40):
        store.grow(None, [5, 6, 7, 8, 10 + i])
        assert store.tokens <= 30
        assert store.tokens == sum(map(len, store.texts.values()))
    assert len(store.places) <= 30
    assert (1, 2) not in store.places, "an output that is gone leaves no places"
    assert all(place >> 32 in store.texts for places in store.places.values() for place in places)
    assert store.grow(text, [1, 2]) != text, "a row whose output is gone goes on with a new one"


def test_places_per_bigram_are_bounded():
    store = Store()
    store.grow(None, [1, 2] * 500)
    assert {len(places) for places in store.places.values()} == {OCCURRENCES}
