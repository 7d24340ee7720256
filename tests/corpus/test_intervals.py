"""Interval sets against sets of integers."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from raydecode.corpus.intervals import Cover, IntervalSet, Span

interval = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
intervals = st.lists(interval, max_size=12)


def ints(pairs):
    return {k for a, b in pairs for k in range(a, b)}


def canonical(one):
    pairs = list(one)
    assert all(a < b for a, b in pairs)
    assert all(b < c for (_, b), (c, _) in pairwise(pairs)), "neighbours must be joined"
    return ints(pairs)


@given(st.lists(st.tuples(st.booleans(), interval), max_size=30))
def test_add_and_remove(operations):
    one, model = IntervalSet(), set()
    for add, (a, b) in operations:
        (one.add if add else one.remove)(a, b)
        model = model | ints([(a, b)]) if add else model - ints([(a, b)])
        assert canonical(one) == model
        assert one.size == len(model)
        assert bool(one) == bool(model)


@given(intervals, intervals)
def test_set_operations(left, right):
    a, b = IntervalSet(left), IntervalSet(right)
    assert canonical(a.subtract(b)) == ints(left) - ints(right)
    assert canonical(a.intersect(b)) == ints(left) & ints(right)
    union = a.copy()
    union.update(b)
    assert canonical(union) == ints(left) | ints(right)
    assert canonical(a) == ints(left)
    assert (a == b) == (ints(left) == ints(right))


@given(intervals, interval)
def test_questions(pairs, probe):
    one, (a, b) = IntervalSet(pairs), probe
    wanted = ints([probe])
    assert one.covers(a, b) == (wanted <= ints(pairs))
    assert one.overlaps(a, b) == bool(wanted & ints(pairs))
    assert ints(one.missing(a, b)) == wanted - ints(pairs)
    assert (a in one) == (a in ints(pairs))


spans = st.lists(st.tuples(st.integers(0, 3), interval).map(lambda p: Span(p[0], *p[1])), max_size=10)


def cells(many):
    return {(s.input, k) for s in many for k in range(s.start, s.stop)}


@given(spans, spans)
def test_cover(left, right):
    a, b = Cover(left), Cover(right)
    assert cells(a.subtract(b).spans()) == cells(left) - cells(right)
    assert cells(a.intersect(b).spans()) == cells(left) & cells(right)
    assert Cover.from_json(json.loads(json.dumps(a.to_json()))) == a
    union = a.copy()
    union.update(b)
    assert cells(union.spans()) == cells(left) | cells(right)
    for span in right:
        assert a.covers(span) == (cells([span]) <= cells(left))
        assert a.overlaps(span) == bool(cells([span]) & cells(left))
        assert cells(a.missing(span)) == cells([span]) - cells(left)
        union.remove(span)
    assert cells(union.spans()) == cells(left) - cells(right)
    assert bool(a) == bool(cells(left))
    assert a.size == len(cells(left))


def test_memory_follows_holes_not_rows():
    one = IntervalSet((k, k + 1) for k in range(100_000))
    assert list(one) == [(0, 100_000)]
