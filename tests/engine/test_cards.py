"""Cards against a loop: defaults are filled in once, by the method's own options."""

from __future__ import annotations

from raydecode.conformance.drive import drive
from raydecode.engine.cards import complete
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request


def test_defaults_are_filled_in():
    spec = DecodingSpec(sampler=(Card("temperature"), Card("top_k", {"k": 2})))
    whole = complete(spec)
    assert whole.sampler == (Card("temperature", {"value": 1.0}), Card("top_k", {"k": 2}))
    assert complete(whole) is whole


def test_a_card_without_options_decodes_like_its_defaults():
    bare, full = Card("temperature"), Card("temperature", {"value": 1.0})
    requests = [Request("r", "r", Ids((0, 1)), DecodingSpec(max_tokens=9, seed=4, sampler=(c,))) for c in (bare, full)]
    one, other = (drive(ToyEngine(), [request]) for request in requests)
    assert one.difference(other) is None
    assert all(outcome.error is None for outcome in one.outcomes.values())
