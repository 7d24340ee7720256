"""Prompt lookup against a scan of the whole text."""

from __future__ import annotations

import random

import pytest

from raydecode.config import parse_decoding
from raydecode.errors import UserError
from tests.drafters.views import propose


def scan(context, longest, shortest, tokens, pick=max):
    """The definition: for each n the places where the end stands once more; copy on from `pick` of them."""
    size = len(context)
    for n in range(longest, shortest - 1, -1):
        places = [at for at in range(n, size) if context[at - n : at] == context[size - n :]]
        if places:
            text = list(context)
            for i in range(tokens):
                text.append(text[pick(places) + i])
            return text[size:]
    return []


def found(pick=max):
    """Pairs of what is drafted and what the scan says, over random texts that grow by a few tokens at a time."""
    make = random.Random(5)
    for letters, longest, shortest in [(2, 4, 2), (3, 3, 1), (5, 2, 2), (9, 4, 1)] * 8:
        text = [make.randrange(letters) for _ in range(60)]
        cuts = sorted(make.sample(range(1, 60), 6))
        tree = propose("ngram", [text[:cut] for cut in cuts], longest=longest, shortest=shortest, tokens=7)
        assert tree.parent == tuple(range(-1, len(tree) - 1))
        yield list(tree.token[1:]), scan(text[: cuts[-1]], longest, shortest, 7, pick)


def test_drafts_are_those_of_the_scan():
    pairs = list(found())
    assert all(drafted == expected for drafted, expected in pairs)
    assert sum(bool(drafted) for drafted, _ in pairs) > len(pairs) / 2


def test_the_first_place_instead_of_the_last_is_found_out():
    assert any(drafted != expected for drafted, expected in found(pick=min))


def test_a_period_is_drafted_beyond_the_text():
    assert propose("ngram", [[7, 1, 2, 3, 1, 2, 3]]).token == (3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1)


def test_nothing_is_drafted_below_an_end_or_beyond_the_budget():
    assert propose("ngram", [[1, 2, 9, 4, 1, 2]], ends=(9,)).token == (2, 9)
    assert propose("ngram", [[1, 2, 3, 4, 1, 2]], budget=1).token == (2, 3)
    assert propose("ngram", [[1, 2, 3, 4, 1, 2]], budget=0).token == (2,)
    assert propose("ngram", [[1]]).token == (1,)


def test_crossed_lengths_are_refused():
    with pytest.raises(UserError, match="shortest 3 is more than longest 2"):
        parse_decoding({"drafter": {"name": "ngram", "longest": 2, "shortest": 3}})
