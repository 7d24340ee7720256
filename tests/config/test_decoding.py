"""One meaning of `decoding`: job, row, record; and what a row may use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from raydecode.config import Roster, decoding_json, parse_decoding
from raydecode.errors import UserError
from raydecode.request import Card, DecodingSpec

BASE = parse_decoding({"seed": 7, "max_tokens": 9, "sampler": [{"name": "top_p", "p": 0.9}], "stop": ["\n"]})


def test_a_rows_keys_replace_the_jobs():
    spec = parse_decoding('{"sampler": "greedy", "seed": 8}', BASE)
    assert spec.sampler == (Card("greedy", {}),)
    assert spec.seed == 8
    assert spec.max_tokens == 9
    assert spec.stop == (b"\n",)


def test_nulls_of_a_struct_are_not_given():
    row = {"seed": None, "sampler": [{"name": "top_p", "p": 0.5, "k": None}], "monitors": None, "search": None}
    spec = parse_decoding(row, BASE)
    assert spec.seed == 7
    assert spec.sampler == (Card("top_p", {"p": 0.5}),)


def test_none_switches_off():
    assert parse_decoding({"drafter": "none", "search": "none", "sampler": "none"}, BASE).sampler == ()


def test_auto_is_a_drafter_with_options():
    assert parse_decoding({"drafter": "auto"}).drafter == Card("auto", {"among": []})
    card = parse_decoding({"drafter": {"name": "auto", "among": ["ngram", {"name": "suffix", "depth": 8}]}}).drafter
    assert card.options["among"] == ["ngram", {"name": "suffix", "depth": 8}]
    wrong = [
        (["ngramm"], r"drafter\.among\[0\]: no drafter 'ngramm'"),
        (["auto"], "chooses itself"),
        ([{"depth": 8}], "needs a `name`"),
        ([{"name": "ngram", "depth": 8}], r"decoding\.drafter\.among\[0\]\.depth: ngram has no option"),
    ]
    for among, says in wrong:
        with pytest.raises(UserError, match=says):
            parse_decoding({"drafter": {"name": "auto", "among": among}})


def test_a_drafter_by_name_has_its_options():
    card = parse_decoding({"drafter": {"name": "token_recycling", "nodes": 4}}).drafter
    assert card == Card("token_recycling", {"k": 8, "nodes": 4, "prompt": False, "shared": True})


def test_record_round_trip():
    assert parse_decoding(json.dumps(decoding_json(BASE))) == BASE
    assert parse_decoding(decoding_json(DecodingSpec())) == DecodingSpec()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{", "decoding: not JSON"),
        ("[1]", "decoding: needs a mapping, got a list"),
        ('{"max_token": 3}', "decoding.max_token: no key 'max_token' here\n  nearest: max_tokens"),
        ('{"sampler": "top_k"}', "decoding.sampler.k: top_k needs this option"),
        ('{"roster": {}}', "decoding.roster: only the job may set this"),
        ('{"overflow": "error"}', "decoding.overflow: only the job may set this"),
        ('{"sampler": ["greedy", "grdy"]}', "decoding.sampler[1]: no sampler 'grdy'"),
        ('{"sampler": ["greedy", "temperature"]}', "decoding.sampler[1]: 'temperature' and 'greedy' contradict"),
        ('{"sampler": ["temperature", "greedy"]}', "decoding.sampler[0]: 'temperature' and 'greedy' contradict"),
        ('{"sampler": ["greedy", "dry"]}', "greedy leaves one token, so dry would change nothing"),
        (
            '{"sampler": [{"name": "top_k", "k": 3}, "temperature", {"name": "top_k", "k": 9}]}',
            "decoding.sampler[2]: 'top_k' is in the chain twice, first at [0]\n  keep the one that is meant",
        ),
    ],
)
def test_what_is_said_about_a_wrong_row(value, says):
    with pytest.raises(UserError) as caught:
        parse_decoding(value, BASE)
    assert says in str(caught.value)


def test_what_changes_the_likeliest_token_goes_before_greedy():
    chain = parse_decoding({"sampler": ["repetition_penalty", "dry", "greedy"]}).sampler
    assert [card.name for card in chain] == ["repetition_penalty", "dry", "greedy"]


def test_where_names_the_place():
    with pytest.raises(UserError, match=r"rows\[3\]\.decoding\.sampler"):
        parse_decoding({"sampler": "nope"}, where="rows[3].decoding")


def test_roster_without_names_allows_what_loads_nothing():
    Roster(own=BASE.cards()).check(parse_decoding({"sampler": "greedy"}))


def test_roster_with_names_allows_those_and_the_jobs_own():
    roster = Roster(own=BASE.cards(), named={"samplers": (Card("top_k"),)})
    roster.check(BASE)
    roster.check(parse_decoding({"sampler": {"name": "top_k", "k": 3}}))
    with pytest.raises(UserError) as caught:
        roster.check(parse_decoding({"sampler": "greedy"}))
    assert "samplers/greedy is not on the job's roster" in str(caught.value)
    assert "top_p, top_k" in str(caught.value)


def test_importing_the_room_is_cheap():
    heavy = "torch", "ray", "vllm", "transformers", "pyarrow"
    code = f"import sys, raydecode.config; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
