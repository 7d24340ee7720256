"""Errors: one message for a person, whole after a trip between processes."""

from __future__ import annotations

import pickle

from raydecode.errors import JobError, Refused, RowError, UserError, nearest


def test_a_message_for_a_person():
    error = UserError("no sampler 'topp'", field="decoding.sampler", value="topp", nearest="top_p", hint="all: list")
    assert str(error) == "decoding.sampler: no sampler 'topp'\n  nearest: top_p\n  all: list"
    assert str(UserError("just this")) == "just this"


def test_errors_survive_pickling():
    for error in (
        UserError("no", field="f", value=[1], nearest="n", hint="h"),
        Refused("torch cannot", field="decoding.search", value="beam"),
        RowError("sampler", "BadLogits", "NaN"),
        JobError("no space left"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_nearest():
    assert nearest("token_recyling", ["token_recycling", "ngram"]) == "token_recycling"
    assert nearest("xyz", ["token_recycling"]) is None
