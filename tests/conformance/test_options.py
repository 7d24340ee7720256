"""Options for methods that nobody wrote a case for."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, model_validator

from raydecode import registry
from raydecode.conformance import Violation
from raydecode.conformance.options import MOST, option_sets


def _sets(cls):
    with registry.guests():
        registry.register("samplers", name="guest")(type("Guest", (), {"__doc__": "A guest.", "Options": cls}))
        return option_sets(registry.get("samplers", "guest"))


@pytest.mark.parametrize("method", registry.cards("samplers"), ids=str)
def test_every_method_has_some(method):
    sets = option_sets(method)
    assert 1 <= len(sets) <= MOST
    for options in sets:
        method.options.model_validate(options)


def test_bounds_default_and_examples():
    class Options(registry.Options):
        share: float = Field(gt=0, le=1)

    class Named(registry.Options):
        word: str = Field(examples=["ab", "c"])
        mode: Literal["fast", "slow"] = "slow"
        flag: bool = False

    shares = [one["share"] for one in _sets(Options)]
    assert 1.0 in shares
    assert all(0 < share <= 1 for share in shares)
    assert {one["word"] for one in _sets(Named)} == {"ab", "c"}
    assert {one["mode"] for one in _sets(Named)} == {"fast", "slow"}
    assert {one["flag"] for one in _sets(Named)} == {False, True}
    assert _sets(registry.Options) == [{}]


def test_options_that_exclude_each_other_are_left_out():
    class Options(registry.Options):
        low: int = Field(default=1, ge=1, le=9)
        high: int = Field(default=5, ge=1, le=9)

        @model_validator(mode="after")
        def _rise(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    sets = _sets(Options)
    assert len(sets) > 2
    assert all(one["low"] <= one["high"] for one in sets)


def test_what_cannot_be_guessed_is_asked_for():
    class Options(registry.Options):
        path: str

    with pytest.raises(Violation, match="option 'path' has neither default nor examples"):
        _sets(Options)
