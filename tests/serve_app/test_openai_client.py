"""Every endpoint by OpenAI's own client."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from raydecode.config import decoding_json, parse_decoding
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent
from raydecode.request import Messages, Request, Text
from tests.serve_app.server import Server

CHAT = [{"role": "system", "content": "a(b"}, {"role": "user", "content": "ab)"}]


def bare(request: Request) -> list[OutcomeEvent]:
    """The request on an engine without a server."""
    engine = ToyEngine(slots=4)
    engine.submit(request)
    out = []
    while engine.busy:
        out += [event for event in engine.step() if isinstance(event, OutcomeEvent)]
    return sorted(out, key=lambda one: one.row.sample)


def test_models_are_listed_and_described(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy", "slow", "set"]
    model = client.models.retrieve("toy")
    assert (model.object, model.owned_by) == ("model", "raydecode")
    assert model.raydecode["engine"] == "toy"
    assert model.raydecode["promise"] == "bitwise"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tox")
    assert caught.value.code == "model_not_found"
    assert "nearest: toy" in str(caught.value)


def test_a_chat_is_what_the_bare_engine_says(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="toy",
        messages=CHAT,
        seed=3,
        n=2,
        max_tokens=12,
        temperature=0.7,
        top_p=0.9,  # type: ignore[arg-type]
    )
    spec = parse_decoding(
        {
            "seed": 3, "n": 2, "max_tokens": 12,
            "sampler": [{"name": "temperature", "value": 0.7}, {"name": "top_p", "p": 0.9}],
        }
    )  # fmt: skip
    wanted = bare(Request("x", "", Messages(tuple(CHAT)), spec))
    assert [choice.message.content for choice in answer.choices] == [one.text.decode() for one in wanted]
    assert answer.usage
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in wanted)
    assert answer.usage.prompt_tokens == wanted[0].stats.prompt_tokens
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    ours = answer.raydecode  # type: ignore[attr-defined]
    assert ours["seed"] == 3
    assert [one["reason"] for one in ours["samples"]] == [one.reason for one in wanted]
    assert answer.system_fingerprint
    assert answer.system_fingerprint.startswith("fp_")


def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    given = {"model": "toy", "messages": CHAT, "seed": 4, "n": 3, "max_tokens": 30, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**given)  # type: ignore[call-overload]
    texts, scored, finish = ["", "", ""], [[], [], []], [None] * 3
    usage = None
    for chunk in client.chat.completions.create(  # type: ignore[call-overload]
        **given, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            scored[choice.index] += (choice.logprobs and choice.logprobs.content) or []
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    for i, choice in enumerate(whole.choices):
        assert texts[i] == choice.message.content
        assert scored[i] == choice.logprobs.content
        assert finish[i] == choice.finish_reason
        assert "".join(one.token for one in scored[i]) == texts[i]
    assert usage == whole.usage


def test_a_completion_with_stop_logprobs_and_several_prompts(client: OpenAI) -> None:
    given = {
        "model": "toy",
        "prompt": ["ab(", "ba"],
        "seed": 1,
        "n": 2,
        "max_tokens": 20,
        "stop": ["(a", "bb"],
        "logprobs": 3,
    }
    whole = client.completions.create(**given)  # type: ignore[call-overload]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    alone = client.completions.create(**{**given, "prompt": "ab("})  # type: ignore[call-overload]
    assert [one.text for one in alone.choices] == [one.text for one in whole.choices[:2]]
    for choice in whole.choices:
        assert "(a" not in choice.text
        assert "bb" not in choice.text
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset == list(range(len(choice.text)))
        assert all(len(top) in (3, 4) for top in choice.logprobs.top_logprobs)
    texts = [""] * 4
    for chunk in client.completions.create(**given, stream=True):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_echo_scores_the_prompt_and_leaves_the_text_alone(client: OpenAI) -> None:
    given = {"model": "toy", "prompt": "ab(a", "seed": 9, "max_tokens": 6, "logprobs": 1}
    plain, echoed = client.completions.create(**given), client.completions.create(**given, echo=True)  # type: ignore[call-overload]
    assert echoed.choices[0].text == "ab(a" + plain.choices[0].text
    scores = echoed.choices[0].logprobs
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert scores.token_logprobs[4:] == plain.choices[0].logprobs.token_logprobs
    assert scores.text_offset == list(range(len(echoed.choices[0].text)))
    # what the model says of a prompt's token is what it says of the same token as output
    from raydecode.engine import toy

    for t, token in enumerate([1, 2, 0], 1):
        logp = toy.logits([0, 1, 2, 0][:t]).log_softmax(0)[token]
        assert scores.token_logprobs[t] == pytest.approx(float(logp), abs=1e-6)
    nothing = client.completions.create(**{**given, "max_tokens": 0}, echo=True)  # type: ignore[call-overload]
    assert nothing.choices[0].text == "ab(a"
    assert nothing.usage.completion_tokens == 0
    ids = client.completions.create(**{**given, "prompt": [0, 1, 2, 0]}, echo=True)  # type: ignore[call-overload]
    assert ids.choices[0].text == echoed.choices[0].text


def test_best_of_gives_the_likeliest(client: OpenAI) -> None:
    given = {"model": "toy", "prompt": "ab", "seed": 2, "max_tokens": 5, "logprobs": 0}
    all_of = client.completions.create(**given, n=5)  # type: ignore[call-overload]

    def mean(choice: object) -> float:
        logps = choice.logprobs.token_logprobs  # type: ignore[attr-defined]
        return sum(logps) / len(logps) if logps else -99.0

    best = client.completions.create(**given, n=2, best_of=5)  # type: ignore[call-overload]
    assert len(best.choices) == 2
    assert {one.text for one in best.choices} <= {one.text for one in all_of.choices}
    assert best.usage.completion_tokens == all_of.usage.completion_tokens
    long = [one for one in all_of.choices if one.finish_reason == "length"]  # their logprobs are all of their tokens
    if len(long) == 5:
        assert [one.text for one in best.choices] == [one.text for one in sorted(long, key=mean, reverse=True)[:2]]
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(**given, n=3, best_of=2)  # type: ignore[call-overload]


def test_responses_and_their_typed_events(client: OpenAI) -> None:
    given = {"model": "toy", "input": "ab(", "instructions": "be b", "max_output_tokens": 9, "temperature": 0}
    whole = client.responses.create(**given, include=["message.output_text.logprobs"], top_logprobs=2)  # type: ignore[call-overload]
    same = client.chat.completions.create(
        model="toy", messages=[{"role": "system", "content": "be b"}, {"role": "user", "content": "ab("}],
        max_tokens=9, temperature=0,
    )  # fmt: skip
    assert whole.output_text == same.choices[0].message.content
    assert whole.status in ("completed", "incomplete")
    assert whole.usage.input_tokens == same.usage.prompt_tokens
    assert "".join(one.token for one in whole.output[0].content[0].logprobs) == whole.output_text
    kinds, text, last = [], "", None
    for i, event in enumerate(client.responses.create(**given, stream=True)):  # type: ignore[call-overload]
        assert event.sequence_number == i
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-1] == f"response.{whole.status}"
    assert last.response.output_text == text == whole.output_text
    said = [one.model_dump(exclude_none=True) for one in whole.output]  # an answer's item can be sent back
    question = {"role": "user", "content": [{"type": "input_text", "text": "b"}]}
    again = client.responses.create(model="toy", input=[{"role": "user", "content": "a"}, *said, question])  # type: ignore[list-item]
    assert again.object == "response"


def test_the_served_models_own_decoding_is_the_default(client: OpenAI, server: Server) -> None:
    plain = client.completions.create(model="set", prompt="ab")
    spec = server.config.model_named("set").spec  # type: ignore[union-attr]
    assert plain.choices[0].text == bare(Request("x", "", Text("ab"), spec))[0].text.decode()
    own = {"decoding": {"seed": 6, "sampler": ["greedy"], "max_tokens": 3}, "noise_id": "row 1"}
    changed = client.completions.create(model="set", prompt="ab", extra_body=own)
    wanted = bare(Request("x", "row 1", Text("ab"), parse_decoding(own["decoding"], spec)))[0]  # type: ignore[arg-type]
    assert changed.choices[0].text == wanted.text.decode()
    assert changed.raydecode["noise_id"] == "row 1"  # type: ignore[attr-defined]
    shown = client.models.retrieve("set").raydecode["decoding"]  # type: ignore[attr-defined]
    assert parse_decoding({k: v for k, v in shown.items() if v is not None}) == spec
    assert shown == decoding_json(spec)


def test_a_seed_that_was_drawn_is_said_and_gives_the_same_text(client: OpenAI) -> None:
    first = client.completions.create(model="toy", prompt="ab", max_tokens=40)
    again = client.completions.create(model="toy", prompt="ab", max_tokens=40, seed=first.raydecode["seed"])  # type: ignore[attr-defined]
    assert again.choices[0].text == first.choices[0].text


def test_errors_are_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="toi", messages=CHAT)  # type: ignore[arg-type]
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="toy", messages=CHAT, temperature=9)  # type: ignore[arg-type]
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as later:
        client.chat.completions.create(  # type: ignore[call-overload]
            model="toy", messages=CHAT, response_format={"type": "json_object"}
        )
    assert (later.value.param, later.value.code) == ("response_format", "unsupported")
    with pytest.raises(openai.BadRequestError) as context:
        client.completions.create(model="toy", prompt="a" * 5000, max_tokens=10)
    assert context.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as token:
        client.completions.create(model="toy", prompt="a", logit_bias={"77": 1})
    assert token.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError) as vector:
        client.embeddings.create(model="toy", input="a")
    assert vector.value.code == "unsupported"
    with pytest.raises(openai.NotFoundError) as url:
        client.get("/nowhere", cast_to=object)
    assert url.value.code == "unknown_url"


def test_a_prompt_that_fills_the_context_gets_what_is_left(client: OpenAI) -> None:
    answer = client.completions.create(model="slow", prompt="a" * 4090, temperature=0)
    assert answer.usage
    assert answer.usage.completion_tokens == 6
