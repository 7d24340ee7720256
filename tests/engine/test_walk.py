"""The walk: what ends a row, what constrains a token, what a token event says, and who pays for a fault."""

from __future__ import annotations

import math

import pytest
import torch

from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine.loop import Loop
from raydecode.engine.toy import EOS, ToyEngine, ToyLane, logits
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import visiting

PROMPT = (0, 1, 2)
R = RowId("r")


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


def _run(engine=None, **spec):
    run = drive(engine or ToyEngine(), [Request("r", "r", Ids(PROMPT), DecodingSpec(**{"max_tokens": 12, **spec}))])
    return run.outcomes[R], run.tokens.get(R, [])


def _scripted(what: str, at: int = 1) -> tuple[Card, ...]:
    return (Card("scripted", {"what": what, "at": at}),)


def test_a_monitor_that_needs_only_the_likeliest_gets_them():
    engine = ToyEngine()
    engine.method("monitors", "scripted").needs = Needs(top_k=2)
    _, events = _run(engine, monitors=_scripted("none"), max_tokens=3)
    best = logits(PROMPT).log_softmax(0).topk(2)
    assert [id for id, _ in events[0].top] == best.indices.tolist()
    assert [logp for _, logp in events[0].top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert all(len(event.top) == 2 for event in events)


# ------------------------------------------------------------------------------------------------------ constraints
def test_forced_tokens_are_a_constraint_with_its_price():
    outcome, events = _run(monitors=_scripted("forced", at=0), max_tokens=4)
    assert outcome.tokens == (0, 0, 0, 0), "the monitor says the same at every position: the first of (a, b, a)"
    for event, context in zip(events, [PROMPT + (0,) * n for n in range(4)], strict=True):
        assert event.source == "forced"
        assert event.kept == pytest.approx(-float(logits(context).log_softmax(0)[0]), abs=1e-5)


def test_forced_tokens_are_drafted_at_once():
    runs = [_run(monitors=(Card("brackets"),), max_tokens=40, seed=seed) for seed in range(6)]
    forced = sum(event.source == "forced" for _, events in runs for event in events)
    stats = [outcome.stats for outcome, _ in runs]
    assert sum(one.drafted for one in stats) >= forced / 2 > 0
    assert sum(one.accepted for one in stats) >= forced / 2
    assert sum(one.draft_failures for one in stats) == 0


@pytest.mark.parametrize(
    ("what", "reason", "kind"), [("empty", "eos", None), ("empty is an error", "error", "NothingAllowed")]
)
def test_nothing_allowed_is_answered_as_the_monitor_says(what, reason, kind):
    outcome, _ = _run(monitors=_scripted(what, at=2), ignore_eos=False)
    assert outcome.reason == reason
    assert (outcome.error.kind if outcome.error else None) == kind


@pytest.mark.parametrize(("what", "said"), [("allowed", "token 99"), ("bias", "token -1"), ("forced", "token 77")])
def test_ids_outside_the_vocabulary_end_the_row(what, said):
    outcome, events = _run(monitors=_scripted(f"foreign {what}"), ignore_eos=True)
    assert (outcome.error.stage, outcome.error.kind) == ("monitor", "BadToken")
    assert outcome.error.message == f"constraint.{what}: {said} is not in a vocabulary of 5"
    assert len(events) == 1, "what was chosen before stands"


def test_eos_forbidden():
    outcome, events = _run(monitors=_scripted("no eos", at=0), max_tokens=60)
    assert EOS not in outcome.tokens
    assert events[0].kept == pytest.approx(-math.log1p(-float(logits(PROMPT).softmax(0)[EOS])), abs=1e-5)


@pytest.mark.parametrize("where", ["open", "observe", "constrain", "close"])
def test_a_monitor_that_raises_ends_its_own_row(where):
    good = Request("g", "g", Ids(PROMPT), DecodingSpec(max_tokens=12))
    bad = Request("r", "r", Ids(PROMPT), DecodingSpec(max_tokens=12, monitors=_scripted(f"raise in {where}")))
    run = drive(ToyEngine(), [bad, good])
    assert run.outcomes[R].reason == "error"
    assert run.outcomes[R].error.kind == "RuntimeError"
    assert run.outcomes[RowId("g")] == drive(ToyEngine(), [good]).outcomes[RowId("g")]


# ------------------------------------------------------------------------------------------------------------ ends
def test_a_verdict_cuts_the_text_and_not_the_tokens():
    outcome, _ = _run(monitors=_scripted("cut 2", at=3), ignore_eos=True)
    whole, _ = _run(ignore_eos=True)
    assert (outcome.reason, outcome.tokens) == ("monitor", whole.tokens[:4])
    assert outcome.text == whole.text[: len(b"".join(ToyLane.token_bytes[t] for t in outcome.tokens)) - 2]


def test_a_cut_longer_than_the_text_leaves_nothing():
    outcome, _ = _run(monitors=_scripted("cut 9", at=1), ignore_eos=True)
    assert (outcome.text, len(outcome.tokens)) == (b"", 2)


def test_stop_tokens_end_like_eos_and_are_not_text():
    whole, _ = _run(ignore_eos=True)
    last = whole.tokens[4]
    outcome, _ = _run(ignore_eos=True, stop_tokens=(last,))
    first = whole.tokens.index(last)
    assert (outcome.reason, outcome.tokens) == ("stop", whole.tokens[: first + 1])
    assert outcome.text == b"".join(ToyLane.token_bytes[token] for token in whole.tokens[:first])


def test_eos_ends_unless_it_is_ignored():
    for seed in range(20):
        outcome, _ = _run(seed=seed, max_tokens=30)
        if outcome.reason == "eos":
            assert outcome.tokens[-1] == EOS
            longer, _ = _run(seed=seed, max_tokens=30, ignore_eos=True)
            assert longer.tokens[: len(outcome.tokens)] == outcome.tokens
            assert len(longer.tokens) == 30
            return
    raise AssertionError("no text of 20 ended by itself")


# ---------------------------------------------------------------------------------------------------- what events say
def test_facts_are_of_the_raw_model_and_only_if_asked_for():
    _, silent = _run()
    assert all(event.logp is None and event.entropy is None and event.top == () for event in silent)
    outcome, events = _run(logprobs=2, sampler=(Card("temperature", {"value": 2.0}),), monitors=(Card("bias_a"),))
    context = PROMPT
    for event in events:
        logp_V = logits(context).log_softmax(0)
        assert event.logp == pytest.approx(float(logp_V[event.token]), abs=1e-6)
        assert [id for id, _ in event.top] == logp_V.topk(2).indices.tolist()
        context = (*context, event.token)
    assert [logp for logp, _ in outcome.logprobs] == [event.logp for event in events]


def test_a_monitors_needs_are_met_without_columns_nobody_asked_for():
    outcome, events = _run(monitors=(Card("entropy_stop", {"below": 0.0}),))
    context = PROMPT
    for event in events:
        p_V = logits(context).double().softmax(0)
        assert event.entropy == pytest.approx(float(-(p_V * p_V.log()).sum()), abs=1e-6)
        context = (*context, event.token)
    assert outcome.logprobs == ()


def test_an_outcome_says_what_ended_the_row():
    free, _ = _run(ignore_eos=True)
    assert (free.reason, free.cause) == ("length", "")
    last = free.tokens[-1]
    assert _run(ignore_eos=True, stop_tokens=(last,))[0].cause == f"token {last}"
    letter = bytes(free.text[:1])
    stopped, _ = _run(ignore_eos=True, stop=(b"nothing like this", letter))
    assert (stopped.reason, stopped.cause, stopped.text) == ("stop", letter.decode(), b"")
    watched, _ = _run(ignore_eos=True, max_tokens=12, monitors=(Card("entropy_stop", {"below": 9.0}),))
    assert (watched.reason, watched.cause) == ("monitor", "entropy_stop: low entropy")


# -------------------------------------------------------------------------------------------------- numbers gone bad
class Sick(ToyLane):
    """NaN, +inf, or -inf everywhere for rows whose prompt begins with "b", from the third output token on."""

    def __init__(self, value: float) -> None:
        super().__init__(slots=8, context=64)
        self.value = value

    def forward(self, chunks, needs, hooks=()):
        out = super().forward(chunks, needs, hooks)
        at = 0
        for chunk in chunks:
            size = len(chunk.tree) if chunk.tree else 0
            if chunk.slot == 0 and chunk.start >= 5:
                out.logits_MV[at : at + size] = self.value
            at += size
        return out


class SickLoop(Loop):
    name = "toy"


@pytest.mark.parametrize("sampler", [(), (Card("top_p", {"p": 0.9}),), (Card("greedy"),), (Card("top_k", {"k": 2}),)])
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "")])
def test_sick_logits_end_their_row(value, said, sampler):
    spec = DecodingSpec(max_tokens=12, ignore_eos=True, sampler=sampler)
    requests = [Request("r", "r", Ids(PROMPT), spec), Request("well", "well", Ids(PROMPT), spec)]
    run = drive(SickLoop(Sick(value)), requests)
    sick = run.outcomes[R]
    assert (sick.reason, sick.error.kind) == ("error", "BadLogits")
    assert said in sick.error.message
    assert run.outcomes[RowId("well")] == drive(ToyEngine(), requests[1:]).outcomes[RowId("well")]


def test_the_draw_is_what_the_formula_says():
    """argmax(logits + noise), recomputed token by token from the table, without any part of the engine."""
    from raydecode.randomness import gumbel

    request = Request("r", "r", Ids(PROMPT), DecodingSpec(max_tokens=30, seed=8, ignore_eos=True))
    context = PROMPT
    for t in range(30):
        noise_V = gumbel([request.noise_key(0)], [t], 5)[0]
        context = (*context, int((logits(context) + noise_V).argmax()))
    assert drive(ToyEngine(), [request]).outcomes[R].tokens == context[3:]
    assert torch.get_num_threads() >= 1
