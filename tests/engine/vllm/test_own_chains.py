"""Our chains on the real vLLM: the torch engine's texts and states, in every batch, through pre-emption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydecode.contracts import Engine
from raydecode.engine.vllm import VllmEngine
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Request, RowId, Text
from tests.engine.vllm.batch import CHAINS

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]

PROMPTS = ("The capital of France is", "Once upon a time, in a small village by the sea,")


def ask(id: str, chain: tuple[Card, ...], prompt: str = PROMPTS[1], **spec: object) -> Request:
    return Request(id, id, Text(prompt), DecodingSpec(**{"max_tokens": 12, "seed": 3, "sampler": chain} | spec))


EXPRESSIBLE: dict[str, tuple[Card, ...]] = {
    "plain": (),
    "heat": (Card("temperature", {"value": 0.8}), Card("min_p", {"p": 0.02})),
    "nucleus": (Card("repetition_penalty", {"value": 1.2}), Card("top_p", {"p": 0.9})),
}
"""Chains that vLLM's own parameters could give."""


def asked(chains: dict[str, tuple[Card, ...]]) -> list[Request]:
    return [ask(f"{name}{i}", chain, prompt) for name, chain in chains.items() for i, prompt in enumerate(PROMPTS)]


REQUESTS = asked(CHAINS | EXPRESSIBLE)


def run(engine: Engine, *requests: Request, reset: tuple[int, ...] = ()) -> dict[str, OutcomeEvent]:
    """Outcomes by request. reset: steps after which vLLM pre-empts all rows and forgets every cached block."""
    for request in requests:
        engine.submit(request)
    outcomes, steps = {}, 0
    while engine.busy:
        outcomes |= {event.row.request: event for event in engine.step() if isinstance(event, OutcomeEvent)}
        steps += 1
        if steps in reset:
            assert isinstance(engine, VllmEngine)
            assert engine._vllm.reset_prefix_cache(reset_running_requests=True)
        engine.wait(0.1)
    return outcomes


@pytest.fixture(scope="module")
def crowd(vllm_engine: VllmEngine) -> dict[str, OutcomeEvent]:
    """All chains in one batch of four slots, rows coming and going."""
    return run(vllm_engine, *REQUESTS)


def test_texts_and_states_are_the_torch_engine_s(crowd: dict[str, OutcomeEvent], smollm: Path) -> None:
    from raydecode.engine.torch import TorchEngine

    theirs = run(TorchEngine(smollm, dtype="float32", slots=4, max_length=384), *REQUESTS)
    for id, outcome in crowd.items():
        assert outcome.error is None, outcome.error
        assert (outcome.tokens, outcome.text, outcome.reason) == (theirs[id].tokens, theirs[id].text, theirs[id].reason)
        assert [report["sampler"] for report in outcome.reports] == [one["sampler"] for one in theirs[id].reports]
        for ours, other in zip(outcome.reports, theirs[id].reports, strict=True):
            figures = [key for key in ours if key != "sampler"]
            assert [ours[key] for key in figures] == pytest.approx([other[key] for key in figures], abs=1e-3)
    assert sum(bool(outcome.reports) for outcome in crowd.values()) == 6


def test_each_alone_is_each_in_the_crowd(vllm_engine: VllmEngine, crowd: dict[str, OutcomeEvent]) -> None:
    for request in REQUESTS[::3]:
        (alone,) = run(vllm_engine, request).values()
        assert alone.tokens == crowd[request.id].tokens


def test_pre_emption_leaves_texts_and_states(
    vllm_engine: VllmEngine, crowd: dict[str, OutcomeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a row that vLLM draws for."""
    monkeypatch.setattr(vllm_engine, "_own", False)
    native = ask("native", EXPRESSIBLE["heat"])
    again = run(vllm_engine, *asked(CHAINS), native, reset=(3, 4, 17, 30))
    assert again.pop("native").error is None
    for id, outcome in again.items():
        assert outcome.tokens == crowd[id].tokens, id
        for ours, other in zip(outcome.reports, crowd[id].reports, strict=True):
            assert list(ours.values())[1:] == pytest.approx(list(other.values())[1:], abs=1e-3)


def test_nothing_is_remembered_of_rows_that_ended(vllm_engine: VllmEngine, crowd: dict[str, OutcomeEvent]) -> None:
    vllm_engine.submit(ask("cancelled", CHAINS["mirostat2"], max_tokens=100))
    vllm_engine.step()
    processor = _held(vllm_engine)
    assert len(processor.rows._rows) == 1
    vllm_engine.cancel("cancelled")
    vllm_engine.step()
    run(vllm_engine, ask("next", CHAINS["order"], max_tokens=2))
    assert (processor.rows._rows, processor.rows._out) == ({}, {})


def test_logprobs_are_the_raw_model_s(vllm_engine: VllmEngine) -> None:
    greedy = (Card("greedy"),)
    plain = run(vllm_engine, ask("r", greedy, max_tokens=1, logprobs=3))["r"]
    ours = run(vllm_engine, ask("r", (Card("no_repeat_ngram"), *greedy), max_tokens=1, logprobs=3))["r"]
    assert ours.tokens == plain.tokens
    assert ours.logprobs[0][0] == pytest.approx(plain.logprobs[0][0])
    assert dict(ours.logprobs[0][1]) == pytest.approx(dict(plain.logprobs[0][1]))


def test_a_sampled_row_is_resumed_and_one_with_lost_state_says_so(
    vllm_engine: VllmEngine, crowd: dict[str, OutcomeEvent]
) -> None:
    from dataclasses import replace

    cuts = {"dry1": 1, "order1": 7, "penalty1": 10, "nucleus1": 5}
    asked = [replace(one, resume=(crowd[one.id].tokens[: cuts[one.id]],)) for one in REQUESTS if one.id in cuts]
    for name, resumed in run(vllm_engine, *asked).items():
        assert (resumed.tokens, resumed.text) == (crowd[name].tokens, crowd[name].text)
    stateful = replace(REQUESTS[0], resume=(crowd["mirostat20"].tokens[:3],))
    refused = run(vllm_engine, stateful)["mirostat20"].error
    assert refused
    assert refused.kind == "BadResume"


def test_a_sampler_that_raises_ends_its_row(vllm_engine: VllmEngine) -> None:
    from raydecode import registry
    from raydecode.contracts import Needs

    class Late:
        """Raise at the third token."""

        needs = Needs()
        columns: dict = {}

        def shape(self, x_RC, rows):  # type: ignore[no-untyped-def]
            if 2 in rows.t_R:
                raise RuntimeError("the third token")
            return x_RC

    with registry.guests():
        registry.register("samplers")(Late)
        got = run(vllm_engine, ask("late", (Card("late"),)), ask("good", CHAINS["mirostat2"]))
    assert (got["late"].reason, len(got["late"].tokens)) == ("error", 2)
    assert got["late"].error
    assert (got["late"].error.stage, got["late"].error.message) == ("sampler", "the third token")
    assert got["good"].reason == "length"
    assert vllm_engine.running == ()


def test_equal_ids_of_rows_are_never_confused(vllm_engine: VllmEngine, crowd: dict[str, OutcomeEvent]) -> None:
    request = REQUESTS[1]
    samples = Request(request.id, request.noise_id, request.prompt, DecodingSpec(12, 3, 3, request.decoding.sampler))
    vllm_engine.submit(samples)
    found = {}
    while vllm_engine.busy:
        found |= {event.row: event.tokens for event in vllm_engine.step() if isinstance(event, OutcomeEvent)}
    assert found[RowId(request.id, 0)] == crowd[request.id].tokens
    assert len(set(found.values())) == 3


def _held(engine: VllmEngine) -> Any:
    """The processor inside vLLM's worker."""
    (found,) = engine._vllm.collective_rpc(lambda worker: worker._raydecode())
    (processor,) = found
    return processor
