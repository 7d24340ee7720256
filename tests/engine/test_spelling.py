"""A model's words in another's: by bytes, there and back."""

from __future__ import annotations

import math

import pytest
import torch

from raydecode.engine.spelling import Spelling, spelling
from raydecode.errors import UserError

TARGET = (b"a", b"b", b"ab", b"abc", b"c", b"", b"\xff", b"")
LANE = (b"", b"a", b"b", b"bc", b"ab", b"a", b"c")
EOS, LANE_EOS = frozenset({5}), frozenset({0})


def one() -> Spelling:
    return Spelling(TARGET, EOS, LANE, LANE_EOS, "draft")


def test_there():
    """Exact partners, the last of equals, the longest pieces, ends for ends, nothing for what cannot be spelled."""
    found = [one().there(id) for id in range(len(TARGET))]
    assert found == [(5,), (2,), (4,), (4, 6), (6,), (0,), (), ()]


def test_back():
    x = torch.arange(14.0).reshape(2, 7)
    back = one().back(x)
    assert back.tolist() == [
        [row + 5, row + 2, row + 4, -math.inf, row + 6, row, -math.inf, -math.inf] for row in (0, 7)
    ]
    assert one().share == pytest.approx(5 / 8)


def test_equal_ids_need_no_spelling():
    assert spelling(TARGET, EOS, TARGET, EOS, "same") is None
    assert spelling(TARGET, EOS, (*TARGET, b"", b""), EOS, "padded") is None
    assert spelling((*TARGET, b""), EOS, TARGET, EOS, "padded") is None
    assert spelling(TARGET, EOS, (*TARGET, b"x"), EOS, "one word more") is not None


def test_too_little_in_common_is_an_error():
    words = tuple(b"word%d" % i for i in range(100))
    with pytest.raises(UserError, match="do not fit: 1 of the 100") as caught:
        Spelling(words, frozenset(), (b"word1", b"x"), frozenset(), "org/model")
    assert (caught.value.field, caught.value.value) == ("decoding.drafter.model", "org/model")
