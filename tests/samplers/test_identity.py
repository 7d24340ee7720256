"""Switched off is bit-equal to absent: a chain of identities gives the plain texts and events."""

from __future__ import annotations

import dataclasses

import pytest

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request

IDENTITIES = [
    Card(method.name, method.factory.identity)
    for method in registry.cards("samplers")
    if hasattr(method.factory, "identity")
]
REQUESTS = [Request(f"r{i}", f"r{i}", Ids((i % 4, 1)), DecodingSpec(max_tokens=12, n=2, logprobs=1)) for i in range(6)]


def _with_chain(*chain: Card) -> list[Request]:
    return [dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, sampler=chain)) for r in REQUESTS]


def test_the_usual_ones_can_be_switched_off():
    usual = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}
    assert usual <= {card.name for card in IDENTITIES}


@pytest.mark.parametrize("card", IDENTITIES, ids=lambda card: card.name)
def test_one_identity(card):
    assert drive(ToyEngine(), REQUESTS).difference(drive(ToyEngine(), _with_chain(card))) is None


def test_all_identities_in_one_chain():
    assert drive(ToyEngine(), REQUESTS).difference(drive(ToyEngine(), _with_chain(*IDENTITIES))) is None


def test_temperature_zero_and_tiny_are_greedy():
    greedy = drive(ToyEngine(), _with_chain(Card("greedy")))
    for value in (0.0, 1e-40, 1e-9):
        assert greedy.difference(drive(ToyEngine(), _with_chain(Card("temperature", {"value": value})))) is None
