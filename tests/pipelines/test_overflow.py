"""Prompts that do not fit the context, by each policy, through a whole job on Ray."""

import pytest

from pipelines.generate import run
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent
from raydecode.request import DecodingSpec, Request, Text
from tests.actors.local import job_of, prompts, rows_of

CONTEXT, TOKENS = 32, 12
LONG = "ab(a" * 7 + "b)"  # 30 tokens, and 12 to come


def direct(prompt, tokens=TOKENS):
    """The text of a prompt that fits, from the engine alone."""
    engine = ToyEngine(slots=1, context=CONTEXT)
    engine.submit(Request("x", "long", Text(prompt), DecodingSpec(max_tokens=tokens, seed=3, ignore_eos=True)))
    while True:
        for event in engine.step():
            if isinstance(event, OutcomeEvent):
                return event.text.decode()


@pytest.mark.parametrize("policy", ["error", "cut_left", "cut_right", "shorten"])
def test_each_policy(ray_session, tmp_path, policy):
    rows = [*prompts(4), {"name": "long", "prompt": LONG}]
    job = job_of(
        tmp_path,
        rows,
        engine={"options": {"context": CONTEXT}},
        decoding={"max_tokens": TOKENS, "seed": 3, "ignore_eos": True, "overflow": policy},
        output={"columns": ["text", "prompt_tokens", "output_tokens"]},
    )
    summary = run(job)
    out = {row["id"]: row for row in rows_of(job)}
    long = out.pop("long")
    assert all(row["error"] is None and row["output_tokens"] == TOKENS for row in out.values())
    room = CONTEXT - TOKENS
    match policy:
        case "error":
            assert summary.errors == 1
            assert (long["error"]["stage"], long["error"]["type"]) == ("admission", "ContextOverflow")
            assert "30 prompt tokens + max_tokens 12 = 42 > context 32" in long["error"]["message"]
        case "cut_left":
            assert (long["text"], long["prompt_tokens"]) == (direct(LONG[-room:]), room)
        case "cut_right":
            assert (long["text"], long["prompt_tokens"]) == (direct(LONG[:room]), room)
        case "shorten":
            assert (long["text"], long["output_tokens"]) == (direct(LONG, CONTEXT - 30), CONTEXT - 30)
    assert summary.errors == (policy == "error")
