"""A body becomes the request that a job's `decoding` section would be; nothing in it is ignored."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from raydecode.config import ServedModelConfig, parse_decoding
from raydecode.errors import UserError
from raydecode.request import Card, Ids, Messages, Text
from serve_app import translate
from serve_app.bodies import IDLE, Body, ChatBody, CompletionBody, EmbeddingBody
from serve_app.failures import UNSUPPORTED
from serve_app.responses_body import ResponsesBody
from serve_app.sampling import chain

PLAIN = ServedModelConfig.model_validate({"name": "m", "model": "toy"})
WAYS = {
    "chat": (ChatBody, translate.chat, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    "completion": (CompletionBody, translate.completion, {"model": "m", "prompt": "hi"}),
    "responses": (ResponsesBody, translate.responses, {"model": "m", "input": "hi"}),
}  # fmt: skip


def call(way: str, served: ServedModelConfig = PLAIN, /, **fields: Any) -> translate.Call:
    body, make, base = WAYS[way]
    return make(body.model_validate({**base, **fields}), served, "id", 77, 0)  # type: ignore[operator]


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 0}, {"sampler": ["greedy"]}),
    ({"temperature": 0, "top_p": 0.5}, {"sampler": ["greedy"]}),
    ({"temperature": 1, "top_p": 1, "presence_penalty": 0}, {"sampler": []}),
    (
        {"top_p": 0.9, "temperature": 0.8},
        {"sampler": [{"name": "temperature", "value": 0.8}, {"name": "top_p", "p": 0.9}]},
    ),
    (
        {"frequency_penalty": 0.5, "presence_penalty": -1, "logit_bias": {"3": 2, "1": -100}, "temperature": 0},
        {
            "sampler": [
                {"name": "logit_bias", "bias": {"3": 2.0, "1": -100.0}},
                {"name": "presence_penalty", "value": -1.0},
                {"name": "frequency_penalty", "value": 0.5},
                "greedy",
            ]
        },
    ),
    ({"max_tokens": 9, "n": 3, "seed": 5, "stop": "x"}, {"max_tokens": 9, "n": 3, "seed": 5, "stop": ["x"]}),
    ({"stop": ["ä", "b"], "max_completion_tokens": 4}, {"stop": ["ä", "b"], "max_tokens": 4}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
    ({"decoding": {"monitors": [], "drafter": "ngram", "max_tokens": 3}}, {"drafter": "ngram", "max_tokens": 3}),
]


@pytest.mark.parametrize(("fields", "section"), SAME, ids=str)
def test_fields_are_the_section_of_a_job(fields: dict[str, Any], section: dict[str, Any]) -> None:
    """`drafter: auto` is the default of both; an absent seed is the one that was drawn."""
    assert call("chat", **fields).spec == parse_decoding({"seed": 77, **section}, PLAIN.spec)


def test_the_models_own_chain_is_kept_where_the_body_says_nothing() -> None:
    dry, warm, nucleus = Card("dry"), Card("temperature", {"value": 0.5}), Card("top_p", {"p": 0.8})
    assert chain((dry, warm, nucleus), {"temperature": 0.9}) == (dry, Card("temperature", {"value": 0.9}), nucleus)
    assert chain((dry, warm, nucleus), {"temperature": 0.0}) == (dry, Card("greedy"))
    assert chain((dry, warm, nucleus), {"temperature": 1.0}) == (dry, nucleus)
    assert chain((Card("greedy"),), {"temperature": 0.7}) == (Card("temperature", {"value": 0.7}),)
    assert chain((Card("greedy"),), {"top_p": 0.7}) == (Card("greedy"),)
    assert [card.name for card in chain((warm, nucleus), {"presence_penalty": 1.0, "logit_bias": {1: 1.0}})] == [
        "logit_bias", "presence_penalty", "temperature", "top_p"
    ]  # fmt: skip


def test_a_chat_is_its_messages_and_a_prompt_text_or_ids() -> None:
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
    ]
    assert call("chat", messages=turns).requests[0].prompt == Messages(
        ({"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb", "name": "Ann"})
    )
    assert [one.prompt for one in call("completion", prompt=[[1, 2], [3]]).requests] == [Ids((1, 2)), Ids((3,))]
    several = call("completion", prompt=["a", "b"], noise_id="row").requests
    assert [(one.prompt, one.noise_id) for one in several] == [(Text("a"), "row"), (Text("b"), "row/1")]
    assert len({one.id for one in several}) == 2
    asked = call("responses", input="hi", instructions="be brief").requests[0].prompt
    assert asked == Messages(({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}))


def test_a_text_may_be_shortened_unless_its_length_was_asked_for() -> None:
    assert call("chat").requests[0].overflow == "shorten"
    assert call("chat", max_tokens=5).requests[0].overflow == "error"
    assert call("chat", decoding={"max_tokens": 5}).requests[0].overflow == "error"


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"temperature": 0.5, "decoding": {"sampler": ["greedy"]}}, "decoding.sampler"),
    ("chat", {"max_tokens": 5, "decoding": {"max_tokens": 6}}, "decoding.max_tokens"),
    ("chat", {"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ("chat", {"seed": 5, "decoding": {"seed": 6}}, "decoding.seed"),
    ("chat", {"stop": "a", "decoding": {"stop": "b"}}, "decoding.stop"),
    ("chat", {"top_logprobs": 5}, "top_logprobs"),
    ("chat", {"trace": True}, "trace"),
    ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("completion", {"n": 3, "best_of": 2}, "best_of"),
    ("completion", {"best_of": 2, "stream": True}, "best_of"),
    ("completion", {"max_tokens": 0}, "max_tokens"),
    ("responses", {"decoding": {"n": 2}}, "decoding.n"),
    ("responses", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"decoding": {"sampler": ["tempereture"]}}, "decoding.sampler[0]"),
    ("chat", {"decoding": {"max_token": 1}}, "decoding.max_token"),
    ("chat", {"decoding": {"overflow": "shorten"}}, "decoding.overflow"),
]


@pytest.mark.parametrize(("way", "fields", "named"), CONTRADICTIONS, ids=str)
def test_what_contradicts_itself_is_named(way: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        call(way, **fields)
    assert caught.value.field == named


def test_said_twice_alike_is_no_contradiction() -> None:
    own = {"sampler": [{"name": "temperature", "value": 0.5}], "max_tokens": 5}
    assert call("chat", temperature=0.5, max_tokens=5, decoding=own).spec.max_tokens == 5


def test_the_roster_holds_for_the_field_decoding() -> None:
    model = ServedModelConfig.model_validate(
        {"name": "m", "model": "toy", "decoding": {"roster": {"samplers": ["min_p"]}}}
    )
    assert call("chat", model, decoding={"sampler": [{"name": "min_p", "p": 0.1}]}).spec.sampler
    with pytest.raises(UserError, match="roster"):
        call("chat", model, decoding={"sampler": [{"name": "xtc"}]})
    assert call("chat", model, temperature=0.5).spec.sampler  # OpenAI's fields are always there


CHANGES: dict[str, Any] = {
    "model": "other", "temperature": 0.5, "top_p": 0.5, "stream": True, "decoding": {"max_tokens": 3},
    "noise_id": "row 7", "trace": True, "presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": {"1": 5},
    "seed": 1, "n": 2, "stop": ["x"], "stream_options": {"include_usage": True}, "prompt": "other", "max_tokens": 3,
    "echo": True, "best_of": 2, "messages": [{"role": "user", "content": "other"}], "max_completion_tokens": 3,
    "top_logprobs": 3, "input": "other", "instructions": "be brief", "max_output_tokens": 3,
    "include": ["message.output_text.logprobs"],
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "trace": {"stream": True}, "stream_options": {"stream": True}, "top_logprobs": {"logprobs": True},
}  # fmt: skip
"""What a field needs beside itself."""


@pytest.mark.parametrize("way", WAYS)
def test_no_field_is_silently_ignored(way: str) -> None:
    """Each known field changes the request or its answer, or is refused, or is on the short list that the docs have."""
    body, _make, base = WAYS[way]
    for name in body.model_fields:
        if name in IDLE:
            continue
        if name == "text":  # holds two fields, both refused
            _all_refused("text", body.model_fields["text"].annotation.__args__[0], body, base)  # type: ignore[union-attr]
            continue
        if _refused(body, base, name):
            continue
        value = (True if way == "chat" else 2) if name == "logprobs" else CHANGES[name]
        beside = dict(BESIDE.get(name, {}))
        if way == "responses" and name == "top_logprobs":
            beside = {"include": ["message.output_text.logprobs"]}
        before, after = call(way, **beside), call(way, **beside, **{name: value})
        assert before != after, f"{way}: {name} changes nothing"


def _refused(body: type[Body], base: dict[str, Any], name: str) -> bool:
    try:
        body.model_validate({**base, name: {"no": ["such", "thing"]}})
    except ValidationError as error:
        return any(one["type"] == UNSUPPORTED for one in error.errors())
    return False


def _all_refused(name: str, inner: type[Body], body: type[Body], base: dict[str, Any]) -> None:
    for key in inner.model_fields:
        with pytest.raises(ValidationError) as caught:
            body.model_validate({**base, name: {key: {"no": "such"}}})
        assert caught.value.errors()[0]["type"] == UNSUPPORTED


def test_metadata_comes_back_and_idle_fields_change_no_request() -> None:
    for way, (body, _make, _base) in WAYS.items():
        idle = {name: {"a": "b"} if name == "metadata" else "x" for name in IDLE if name in body.model_fields}
        assert dataclasses.replace(call(way, **idle), metadata=None) == call(way)
    assert call("chat", metadata={"a": "b"}).metadata == {"a": "b"}


def test_embedding_bodies_know_openais_fields() -> None:
    assert EmbeddingBody.model_validate({"model": "m", "input": ["a", "b"], "encoding_format": "base64"}).input == (
        "a",
        "b",
    )
