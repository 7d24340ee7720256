"""The quickstart model behind the server: characters that cross tokens, the chat template, drafts."""

from __future__ import annotations

from typing import Any

import pytest

from raydecode.assemble import build_engine
from raydecode.config import parse_decoding
from raydecode.events import OutcomeEvent
from raydecode.request import Messages, Request
from tests.serve_app.server import Server

CHAT = [{"role": "user", "content": "Write many different emoji and Chinese characters: 😀 汉字 ..."}]
WILD: dict[str, Any] = {"temperature": 1.8, "seed": 3, "max_tokens": 60, "n": 3, "logprobs": True, "top_logprobs": 2}


@pytest.mark.slow
@pytest.mark.real_model
def test_a_stream_of_characters_that_cross_tokens_is_the_whole_answer(smollm: Any) -> None:
    served = {"name": "smol", "model": str(smollm), "engine": {"name": "torch", "slots": 4}}
    with Server({"models": [served]}) as server:
        body = {"model": "smol", "messages": CHAT, **WILD, "decoding": {"drafter": "ngram"}}
        whole = server.post("/v1/chat/completions", body).json()
        chunks = server.sse("/v1/chat/completions", body)
        spec = server.config.models[0].spec
        engine = build_engine(server.config.models[0])  # type: ignore[arg-type]
    choices = whole["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    pieces, scored = ["", "", ""], [[], [], []]  # type: ignore[var-annotated]
    for chunk in chunks:
        for choice in chunk["choices"]:
            pieces[choice["index"]] += choice["delta"].get("content", "")
            scored[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    assert pieces == texts
    assert scored == [choice["logprobs"]["content"] for choice in choices]
    assert any(one["token"].startswith("bytes:") for own in scored for one in own), "no character crossed a token"
    for text, own in zip(texts, scored, strict=True):
        assert b"".join(bytes(one["bytes"]) for one in own).decode("utf-8", "replace") == text
    # the same request in a job
    section = {"n": 3, "seed": 3, "max_tokens": 60, "sampler": [{"name": "temperature", "value": 1.8}]}
    engine.submit(Request("x", "", Messages(tuple(CHAT)), parse_decoding(section, spec)))
    outcomes = []
    while engine.busy:
        outcomes += [event for event in engine.step() if isinstance(event, OutcomeEvent)]
    outcomes.sort(key=lambda one: one.row.sample)
    assert [one.text.decode("utf-8", "replace") for one in outcomes] == texts
