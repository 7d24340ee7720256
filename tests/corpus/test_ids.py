"""Content ids and occurrences, in memory and spilled."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from raydecode.corpus import ids


def reference(rows):
    seen = Counter()
    out = {}
    for position, name in rows:
        if seen[name]:
            out[position] = seen[name]
        seen[name] += 1
    return out


@pytest.mark.parametrize("spill", [1 << 20, 64, 7])
def test_repeats(monkeypatch, spill):
    monkeypatch.setattr(ids, "SPILL", spill)
    rng = random.Random(0)
    rows = [(i * 10, ids.content_id({"q": rng.randrange(40)})) for i in range(1000)]
    positions, occurrences = ids.repeats(rows)
    assert dict(zip(positions.tolist(), occurrences.tolist(), strict=True)) == reference(rows)
    assert positions.tolist() == sorted(positions.tolist())


def test_no_rows_and_no_repeats():
    assert [len(one) for one in ids.repeats([])] == [0, 0]
    assert [len(one) for one in ids.repeats([(0, ids.content_id({"a": 1})), (1, ids.content_id({"a": 2}))])] == [0, 0]


def test_content_is_what_counts():
    assert ids.content_id({"a": 1, "b": None}) == ids.content_id({"a": 1})
    assert ids.content_id({"a": 1, "b": 2}) == ids.content_id({"b": 2, "a": 1})
    assert ids.content_id({"a": "1"}) != ids.content_id({"a": 1})
    assert ids.content_id({"a": "\ud800"}) != ids.content_id({"a": "?"})
    assert len(ids.content_id({})) == 32
    assert ids.with_occurrence("x", 0) == "x"
    assert ids.with_occurrence("x", 2) == "x-2"
