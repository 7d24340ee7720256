"""Requests: plain data, and the key of a sample's noise."""

from __future__ import annotations

import dataclasses

import pytest

from raydecode.request import Card, DecodingSpec, Ids, Request, RowId


def test_a_card_is_its_json():
    assert Card("top_p", {"p": 0.9}).to_json() == {"name": "top_p", "p": 0.9}
    assert Card("greedy").to_json() == {"name": "greedy"}


def test_cards_by_room():
    spec = DecodingSpec(sampler=(Card("greedy"),), drafter=Card("d"), monitors=(Card("m"), Card("n")))
    assert spec.cards() == {
        "samplers": (Card("greedy"),), "drafters": (Card("d"),), "searches": (), "monitors": (Card("m"), Card("n")),
        "interventions": (),
    }  # fmt: skip


def test_the_noise_key_follows_seed_noise_id_and_sample_only():
    request = Request("a", "row 1", Ids((1,)), DecodingSpec(seed=3))
    key = request.noise_key(0)
    same = [
        dataclasses.replace(request, id="b"),
        dataclasses.replace(request, prompt=Ids((2, 3))),
        dataclasses.replace(request, decoding=DecodingSpec(seed=3, max_tokens=5, sampler=(Card("greedy"),), n=4)),
        dataclasses.replace(request, resume=((1, 2),)),
    ]
    assert {one.noise_key(0) for one in same} == {key}
    others = [
        request.noise_key(1),
        dataclasses.replace(request, noise_id="row 2").noise_key(0),
        dataclasses.replace(request, noise_id="").noise_key(0),
        dataclasses.replace(request, decoding=DecodingSpec(seed=4)).noise_key(0),
    ]
    assert len({key, *others}) == 5


def test_the_noise_key_is_fixed_for_ever():
    """Every text that was ever made depends on this number: a change here changes all of them."""
    assert Request("any", "row 1", Ids((1,)), DecodingSpec(seed=3)).noise_key(2) == 0xBC8ED93111B3E1F3


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodingSpec().seed = 3


def test_rows_sort_by_request_then_sample():
    assert sorted([RowId("b"), RowId("a", 2), RowId("a", 1)]) == [RowId("a", 1), RowId("a", 2), RowId("b")]
