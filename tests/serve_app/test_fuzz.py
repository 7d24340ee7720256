"""A thousand bodies with one thing wrong each: all are refused with the field's name, none is a fault of ours."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.serve_app.server import Server

BASES = {
    "/v1/chat/completions": {"model": "toy", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 2},
    "/v1/completions": {"model": "toy", "prompt": "ab", "max_tokens": 2},
    "/v1/responses": {"model": "toy", "input": "ab", "max_output_tokens": 2},
    "/v1/embeddings": {"model": "toy", "input": "ab"},
}
JUNK: list[Any] = ["", "x", "0.5", "ä" * 50, [], [[]], [None], {}, {"a": 1}, {"": {}}, True, 1e300, -1, 1.5, [1, "a"]]


def _without(*allowed: type) -> list[Any]:
    return [one for one in JUNK if type(one) not in allowed]


NUMBER, WHOLE, TEXT, FLAG, STRUCTURE = (
    [*_without(int, float), -101.0, 101.0, 1e300, -1e300],
    [*_without(int), -1, 1e9, 1.5],
    _without(str),
    [*_without(bool), 1, 0],
    [[], "x", 1, True, {"a": 1}, {"type": "json_schema"}, [{}], {"type": 5}, "auto ", -1],
)
SHARED: dict[str, list[Any]] = {
    "model": [*TEXT, None, "toys", "x" * 600, "../../etc"],
    "temperature": NUMBER, "top_p": [*NUMBER, 0, 1.01], "stream": FLAG, "noise_id": [*TEXT, "x" * 600],
    "user": TEXT, "safety_identifier": TEXT, "prompt_cache_key": TEXT,
    "decoding": [
        [], "x", 1, True, {"a": 1}, {"sampler": 5}, {"sampler": ["no"]}, {"sampler": [{"name": "top_p", "p": 7}]},
        {"sampler": ["greedy", "greedy"]}, {"n": 0}, {"n": 10**6}, {"seed": -1}, {"stop": ""}, {"stop": 5},
        {"drafter": ["ngram"]}, {"drafter": "ngrams"}, {"monitors": "regex"}, {"search": "beam"}, {"logprobs": 2000},
        {"interventions": [{}]}, {"overflow": "error"}, {"roster": {}}, {"max_tokens": 10**9}, {"deadline_s": 0},
        {"sampler": [{"name": "top_p", "p": "x" * 5000}]}, {"stop_tokens": ["a"]}, {"sampler": {"name": 5}},
    ],
    "trace": [*FLAG, True],
}  # fmt: skip
CHOICES: dict[str, list[Any]] = {
    **SHARED, "presence_penalty": NUMBER, "frequency_penalty": NUMBER, "seed": [*WHOLE, 1 << 64, -(1 << 70)],
    "n": [*WHOLE, 0, 9, 10**6, 10**40], "stop": [1, True, {}, [1], [["a"]], [""], "", ["a"] * 20, "a" * 300],
    "logit_bias": [[], "x", 1, {"a": 1}, {"1": "a"}, {"1": 101}, {"-1": 0}, {"1": True}, {"9" * 30: 1}, {"4000": 1}],
    "stream_options": [*STRUCTURE, {"include_usage": 1}, {"include_usage": True}, {"include_obfuscation": True}],
    "metadata": [[], "x", 1, {"a": 1}, {f"k{i}": "" for i in range(17)}], "store": [True, 1, "x"],
    "service_tier": ["flex", 1, []], "max_tokens": [*WHOLE, 10**40, 5000],
}  # fmt: skip
WRONG: dict[str, dict[str, list[Any]]] = {
    "/v1/chat/completions": {
        **CHOICES,
        "messages": [
            None, [], "x", 1, {}, [1], [None], [{}], [{"role": "user"}], [{"role": "tool", "content": "x"}],
            [{"role": "user", "content": 5}], [{"role": "user", "content": []}], [{"role": "x", "content": "x"}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "x", "tool_calls": [1]}],
            [{"role": "user", "content": "x", "colour": "red"}], [{"role": "user", "content": None}],
            [{"role": "user", "content": [[[[[[[[[["x"]]]]]]]]]]}],
        ],
        "logprobs": [*FLAG, 3], "top_logprobs": [*WHOLE, 21, 2], "max_completion_tokens": [*WHOLE, 0, 3],
        "response_format": STRUCTURE, "tools": [{}, "x", [1], [{"type": "function"}]], "tool_choice": ["auto", {}, 1],
        "functions": [[{}], 1], "function_call": ["auto", 1], "modalities": [["audio"], "text", 1],
        "reasoning_effort": ["low", 1], "prediction": STRUCTURE[4:7], "audio": STRUCTURE[1:7], "suffix": ["x"],
        "parallel_tool_calls": [True], "web_search_options": [{}], "verbosity": ["low"], "prompt": ["x"],
    },
    "/v1/completions": {
        **CHOICES, "prompt": [None, [], {}, 1, True, [[]], [None], ["a", 1], [[1], "a"], [-1], [1.5], [7], [[1 << 40]]],
        "logprobs": [*WHOLE, 21, True], "echo": FLAG, "best_of": [*WHOLE, 0, 10**6], "suffix": ["x", 1, []],
        "messages": [[]], "top_k": [40], "min_p": [0.1], "tempratur": [1], "max_tokens": [*WHOLE, 0, 10**40, 5000],
    },
    "/v1/responses": {
        **SHARED,
        "input": [
            None, [], 1, {}, [1], [{}], [{"role": "user"}], [{"type": "function_call"}], [{"role": "user"}, 1],
            [{"role": "user", "content": 1}],
        ],
        "instructions": TEXT, "max_output_tokens": [*WHOLE, 0, 10**40],
        "include": ["x", ["file_search_call.results"], [1]], "top_logprobs": [*WHOLE, 21, 2],
        "text": [1, "x", {"format": {"type": "json_schema"}}, {"verbosity": "low"}, {"a": 1}],
        "previous_response_id": ["x", 1], "conversation": ["x", {}], "tools": [{}, "x", [{}]],
        "reasoning": [{"effort": "low"}],
        "background": [True, 1], "truncation": ["auto", 1], "store": [True], "n": [1], "stop": ["x"], "seed": [1],
        "metadata": [[], {"a": 1}],
    },
    "/v1/embeddings": {
        "model": TEXT, "input": [None, [], {}, 1, [[]]], "dimensions": [0, "x", -1], "encoding_format": ["x", 1],
        "user": TEXT, "seed": [1],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def bodies() -> list[tuple[str, str, dict[str, Any]]]:
    """(address, the field that is wrong, body), a thousand, from a seed."""
    rng = random.Random(20)
    every = [
        (path, field, value) for path, fields in WRONG.items() for field, values in fields.items() for value in values
    ]
    chosen = every if len(every) > 1000 else every + rng.choices(every, k=1000 - len(every))
    out = []
    for path, field, value in chosen:
        body = {**BASES[path], field: value}
        if rng.random() < 0.3 and field not in ("trace", "stream_options"):  # what is right elsewhere changes nothing
            body |= {"user": "u"} if field != "user" else {}
        items = list(body.items())
        rng.shuffle(items)
        out.append((path, field, dict(items)))
    return out


def test_a_thousand_wrong_bodies_are_refused_by_name(
    server: Server, bodies: list[tuple[str, str, dict[str, Any]]]
) -> None:
    assert len(bodies) >= 1000
    for path, field, body in bodies:
        response = server.post(path, body)
        said = json.dumps(body)[:300]
        assert 400 <= response.status_code < 500, f"{path} {said}: {response.status_code} {response.text[:300]}"
        error = response.json()["error"]
        assert error["message"], said
        assert error["type"], said
        param = error["param"] or ""
        assert field in param or field in error["message"], f"{path} {said} names {param!r}: {error['message'][:200]}"
    assert server.held("toy") == 0


def test_bytes_that_are_no_body_are_refused(server: Server) -> None:
    rng = random.Random(21)
    whole = json.dumps(BASES["/v1/completions"]).encode()
    for _ in range(200):
        raw = bytearray(whole)
        match rng.randrange(3):
            case 0:
                raw = raw[: rng.randrange(len(raw))]
            case 1:
                raw = bytearray(rng.randbytes(rng.randrange(1, 60)))
            case 2:
                raw[rng.randrange(len(raw))] = rng.choice(b'{}[]":,\x00\xff')
        response = server.post("/v1/completions", bytes(raw))
        assert response.status_code < 500, (bytes(raw), response.text)


def test_an_hour_of_nesting_takes_no_time(server: Server) -> None:
    deep = b'{"model": "toy", "messages": [], "response_format": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001
    response = server.post("/v1/chat/completions", deep)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    regex = {**BASES["/v1/completions"], "decoding": {"monitors": [{"name": "regex", "pattern": "a" * (1 << 20)}]}}
    response = server.post("/v1/completions", regex)
    assert response.status_code in (400, 413)
    response = server.post("/v1/completions", {**BASES["/v1/completions"], "n": 10**6})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"
