"""Chains to SamplingParams fields: pure, no vLLM needed."""

from __future__ import annotations

from itertools import permutations

import pytest

from raydecode import registry
from raydecode.engine.vllm.params import map_chain, own_chain, plan, refuse, row_seed
from raydecode.errors import Refused, UserError
from raydecode.request import Card, DecodingSpec, Request, Text


def chain(*cards: str | tuple[str, dict]) -> tuple[Card, ...]:
    return tuple(Card(card) if isinstance(card, str) else Card(*card) for card in cards)


REPEAT = ("repetition_penalty", {"value": 1.3})
COOL = ("temperature", {"value": 0.8})
MIN_P, TOP_K, TOP_P = ("min_p", {"p": 0.05}), ("top_k", {"k": 40}), ("top_p", {"p": 0.9})


@pytest.mark.parametrize(
    ("cards", "fields"),
    [
        ((), {"temperature": 1.0}),
        (("greedy",), {"temperature": 0.0}),
        ((COOL,), {"temperature": 0.8}),
        ((TOP_P,), {"temperature": 1.0, "top_p": 0.9}),
        ((TOP_K, TOP_P), {"temperature": 1.0, "top_k": 40, "top_p": 0.9}),
        (
            (REPEAT, COOL, MIN_P, TOP_K, TOP_P),
            {"repetition_penalty": 1.3, "temperature": 0.8, "min_p": 0.05, "top_k": 40, "top_p": 0.9},
        ),
        (
            (("frequency_penalty", {"value": 0.5}), ("presence_penalty", {"value": -0.5}), "greedy"),
            {"frequency_penalty": 0.5, "presence_penalty": -0.5, "temperature": 0.0},
        ),
        (("repetition_penalty",), {"temperature": 1.0, "repetition_penalty": 1.0}),
    ],
)
def test_fields_of_a_chain(cards: tuple, fields: dict) -> None:
    assert map_chain(chain(*cards)).fields == fields


SPECULATION = {"speculative_config": {"method": "ngram"}}


def test_exactly_the_rising_orders_map_and_the_others_are_ours() -> None:
    rising = [REPEAT, COOL, MIN_P, TOP_K, TOP_P]
    mapped = []
    for order in permutations(rising):
        spec = DecodingSpec(sampler=chain(*order))
        assert refuse(spec) is None
        found = plan(spec.sampler)
        if found.own is None:
            mapped.append(order)
        else:
            assert found.own == own_chain(spec.sampler)
            assert (found.fields, found.history, found.replayable) == ({"temperature": 0.0}, True, True)
            with pytest.raises(Refused, match="repetition_penalty, temperature, min_p, top_k, top_p"):
                map_chain(spec.sampler)
    assert mapped == [tuple(rising)]


def test_what_our_processor_runs() -> None:
    found = plan(chain("mirostat2", TOP_P))
    assert found.own == (Card("mirostat2", {"tau": 3.0, "eta": 1.0}), Card("top_p", {"p": 0.9}))
    assert (found.state, found.replayable, found.greedy) == (True, False, False)
    assert not plan(chain("dry", "greedy")).greedy
    hosted = {method.name for method in registry.cards("samplers") if "vllm" in method.engines}
    assert {method.name for method in registry.cards("samplers")} - hosted == {"dola"}
    refusal = refuse(DecodingSpec(sampler=chain(COOL, "dola")))
    assert isinstance(refusal, Refused)
    assert (refusal.field, refusal.value) == ("decoding.sampler[1]", "dola")
    assert "cannot run sampler 'dola'" in str(refusal)
    assert "engines that have it: torch, toy" in str(refusal)


def test_penalties_of_one_stage_commute() -> None:
    one, other = ("frequency_penalty", {"value": 0.5}), ("presence_penalty", {"value": 0.4})
    assert map_chain(chain(one, other)).fields == map_chain(chain(other, one)).fields


@pytest.mark.parametrize(
    ("cards", "field", "says"),
    [
        ((TOP_P, COOL), "decoding.sampler[1]", "applies 'temperature' before 'top_p'"),
        ((COOL, COOL), "decoding.sampler[1]", "applies 'temperature' once"),
        (("greedy", COOL), "decoding.sampler[1]", "'greedy' and 'temperature' are one setting of engine vllm"),
        ((("temperature", {"value": 3.0}),), "decoding.sampler[0]", "nearest: 2"),
        ((("temperature", {"value": 0.001}),), "decoding.sampler[0]", "nearest: 0.01"),
        ((("presence_penalty", {"value": -5.0}),), "decoding.sampler[0]", "nearest: -2"),
        (("topp",), "decoding.sampler[0].name", "nearest: top_p"),
        ((("top_k", {"k": 3, "p": 3}),), "decoding.sampler[0].p", "top_k has no option 'p'"),
    ],
)
def test_refusals_name_the_place_and_what_would_work(cards: tuple, field: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        map_chain(chain(*cards))
    assert caught.value.field == field
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("cards", "own"),
    [
        (("greedy",), False),
        ((), True),
        ((COOL,), True),
        ((REPEAT, COOL, TOP_P), True),
        ((REPEAT, "greedy"), True),
        (("mirostat2",), True),
    ],
)
def test_beside_speculation_vllm_verifies_plain_greedy_rows_only(cards: tuple, own: bool) -> None:
    """vLLM refuses or ignores some fields then, and its rejection sampling makes a text depend on the drafts."""
    found = plan(chain(*cards), own=True)
    assert (found.own is not None) == own
    assert found.own in (None, own_chain(chain(*cards)))
    assert found.fields == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("drafter", "options", "says"),
    [
        (Card("token_recycling"), {}, "token ids only: aded, ngram, suffix"),
        (Card("token_recycling"), {}, "engines that host it: torch, toy"),
        (Card("ngramm"), {}, "nearest: ngram"),
        (Card("ngram", {"longst": 3}), {}, "ngram has no option 'longst'"),
        (Card("ngram"), SPECULATION, "drafter 'ngram' and vLLM's own 'ngram' cannot both draft"),
        (Card("ngram"), SPECULATION, "leave one out"),
    ],
)
def test_drafters_that_cannot_run_are_refused_with_what_would(drafter: Card, options: dict, says: str) -> None:
    refusal = refuse(DecodingSpec(drafter=drafter), options)
    assert isinstance(refusal, Refused)
    assert refusal.field.startswith("decoding.drafter")
    assert says in str(refusal)


def test_drafters_that_read_ids_only_run_beside_every_chain() -> None:
    for name in ("aded", "ngram", "suffix"):
        for sampler in ((), chain("greedy"), chain("mirostat2"), chain(TOP_P, COOL)):
            assert refuse(DecodingSpec(sampler=sampler, drafter=Card(name))) is None


def test_zero_temperature_is_greedy_and_within_limits() -> None:
    assert map_chain(chain(("temperature", {"value": 0.0}))).greedy
    assert map_chain(chain("greedy", TOP_P)).greedy
    assert not map_chain(chain(COOL)).greedy


def test_history_says_whether_output_ids_matter() -> None:
    assert map_chain(chain(REPEAT, "greedy")).history
    assert not map_chain(chain("greedy")).history


def test_every_card_that_claims_vllm_maps_alone() -> None:
    claimed = [method for method in registry.cards("samplers") if method.vllm]
    assert len(claimed) >= 8
    options = {"min_p": {"p": 0.1}, "top_k": {"k": 3}, "top_p": {"p": 0.5}, "logit_bias": {"bias": {7: -1.5}}}
    for method in claimed:
        fields = map_chain((Card(method.name, options.get(method.name, {})),)).fields
        assert set(method.vllm.params.values()) | set(method.vllm.fixed) <= set(fields)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (DecodingSpec(drafter=Card("token_recycling")), "drafter 'token_recycling'"),
        (DecodingSpec(search=Card("beam")), "search 'beam'"),
        (DecodingSpec(monitors=(Card("json_schema"),)), "monitor 'json_schema'"),
        (DecodingSpec(interventions=(Card("steer"),)), "intervention 'steer'"),
    ],
)
def test_rooms_that_vllm_cannot_host(spec: DecodingSpec, says: str) -> None:
    refusal = refuse(spec)
    assert isinstance(refusal, Refused)
    assert says in refusal.message
    assert "torch" in str(refusal)


def test_a_choice_of_drafters_is_none_here() -> None:
    assert refuse(DecodingSpec(drafter=Card("auto", {"among": ["ngram"]}))) is None


def test_seeds_fit_vllm_and_differ_by_row_and_sample() -> None:
    rows = [Request(f"r{i}", f"r{i}", Text("x")) for i in range(50)]
    seeds = {row_seed(row.noise_key(sample)) for row in rows for sample in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("cards", [("greedy", TOP_P), ("greedy", "dry"), ("mirostat2", "mirostat2")])
def test_contradictions_are_refused_whoever_would_run_the_chain(cards: tuple) -> None:
    refusal = refuse(DecodingSpec(sampler=chain(*cards)))
    assert isinstance(refusal, Refused)
    assert refusal.field == "decoding.sampler[1]"
