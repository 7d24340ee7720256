"""Drafts inside the real vLLM, each engine in a process of its own: ours by row, vLLM's own for all rows.

Texts are those of plain vLLM (greedy, and chains that our processor runs there too) and, sampled, the torch engine's.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydecode.contracts import Engine
from raydecode.engine.vllm import DRAFTS, VllmEngine
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Request, Text
from tests.engine.vllm.batch import CHAINS

pytestmark = [pytest.mark.real_model, pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTH, SLOTS = 384, 4
PROMPTS = (
    "Copy the line three times.\nred green blue, red green blue\nred green blue,",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):",
    "The capital of France is Paris. The capital of Spain is Madrid. The capital of",
    "Once upon a time, in a small village by the sea,",
)
SAMPLED = {
    "plain": (),
    "top_p": (Card("temperature", {"value": 1.0}), Card("top_p", {"p": 0.9})),
    "penalty": (Card("repetition_penalty", {"value": 1.2}), Card("temperature", {"value": 0.7})),
    "mirostat2": CHAINS["mirostat2"],
}
TOKENS = 32


def ask(name: str, i: int, chain: tuple[Card, ...], drafter: str | None, **spec: Any) -> Request:
    card = Card(drafter) if drafter else None
    given = DecodingSpec(**{"max_tokens": TOKENS, "seed": 5, "sampler": chain, "drafter": card} | spec)
    return Request(f"{name} {i} {drafter}", f"{name} {i}", Text(PROMPTS[i]), given)


def asked(drafters: Iterable[str | None]) -> list[Request]:
    chains = {"greedy": (Card("greedy"),), **SAMPLED}
    return [
        ask(name, i, chain, drafter, logprobs=1 if i == 0 else None)
        for drafter in drafters
        for name, chain in chains.items()
        for i in range(len(PROMPTS))
    ]


def run(engine: Engine, requests: list[Request]) -> dict[str, OutcomeEvent]:
    for request in requests:
        engine.submit(request)
    outcomes = {}
    while engine.busy:
        outcomes |= {event.row.request: event for event in engine.step() if isinstance(event, OutcomeEvent)}
        engine.wait(0.1)
    return outcomes


def run_there(folder: Path, arguments: Mapping[str, Any], requests: list[Request]) -> dict[str, OutcomeEvent]:
    engine = VllmEngine(folder, dtype="float32", slots=SLOTS, max_length=LENGTH, **arguments)
    try:
        return run(engine, requests)
    finally:
        engine.close()


def elsewhere(folder: Path, arguments: Mapping[str, Any], requests: list[Request]) -> dict[str, OutcomeEvent]:
    """In a process of its own: vLLM allows few engines per process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_there, folder, arguments, requests).result()


@pytest.fixture(scope="module")
def truth(vllm_engine: VllmEngine, smollm: Path) -> dict[str, OutcomeEvent]:
    """Plain vLLM's greedy rows, the torch engine's sampled ones."""
    from raydecode.engine.torch import TorchEngine

    rows = asked([None])
    greedy = [row for row in rows if row.decoding.sampler == (Card("greedy"),)]
    theirs = run(TorchEngine(smollm, dtype="float32", slots=SLOTS, max_length=LENGTH), rows)
    return theirs | run(vllm_engine, greedy)


def same(outcomes: Mapping[str, OutcomeEvent], truth: Mapping[str, OutcomeEvent]) -> None:
    for id, outcome in outcomes.items():
        plain = truth[" ".join([*id.split()[:2], "None"])]
        assert outcome.error is None, (id, outcome.error)
        assert (outcome.tokens, outcome.text, outcome.reason) == (plain.tokens, plain.text, plain.reason), id
        logps, wanted = ([logp for logp, _ in one.logprobs] for one in (outcome, plain))
        assert logps == pytest.approx(wanted, abs=2e-3)


def test_our_drafters_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent]) -> None:
    rows = asked([None, "ngram", "suffix", "aded"])
    ended = [
        ask("greedy", 0, (Card("greedy"),), "ngram", stop=(b"blue, red",)),
        ask("greedy", 0, (Card("greedy"),), "token_recycling"),
        replace(ask("greedy", 1, (Card("greedy"),), "ngram"), resume=truth["greedy 1 None"].tokens[:7]),
    ]
    stop, refused, resumed = (replace(one, id=f"{one.id} {i}") for i, one in enumerate(ended))
    outcomes = elsewhere(smollm, {"drafts": DRAFTS}, [*rows, stop, refused, resumed])
    cut, failed, went_on = (outcomes.pop(one.id) for one in (stop, refused, resumed))
    same(outcomes, truth)
    for id, outcome in outcomes.items():
        stats, name = outcome.stats, id.split()[2]
        assert stats.draft_failures == 0
        assert stats.drafter == (None if name == "None" else name)
        assert stats.accepted <= stats.drafted
        assert stats.forwards + stats.accepted == len(outcome.tokens)
        assert (stats.drafted > 0) <= (name != "None")
    for name in ("ngram", "suffix", "aded"):
        mine = [one.stats for id, one in outcomes.items() if id.endswith(name)]
        assert sum(one.accepted for one in mine) > 50
        assert all(one.draft_s > 0 and one.drafter_bytes > 0 for one in mine)
    plain = truth["greedy 0 None"]
    assert plain.text.startswith(cut.text)
    assert cut.reason == "stop"
    assert failed.error
    assert (failed.error.kind, "token ids only" in failed.error.message) == ("Refused", True)
    assert went_on.tokens == truth["greedy 1 None"].tokens


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_vllm_s_own_methods_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent], method: str) -> None:
    """The draft model is the model itself: what it drafts greedily is nearly always the greedy row's token."""
    more = {
        "ngram": {"prompt_lookup_max": 4, "prompt_lookup_min": 2, "num_speculative_tokens": 8},
        "draft_model": {"model": str(smollm), "num_speculative_tokens": 3},
    }
    arguments = {"options": {"speculative_config": {"method": method, **more[method]}}}
    outcomes = elsewhere(smollm, arguments, [*asked([None]), ask("refused", 0, (), "ngram")])
    refused = outcomes.pop("refused 0 ngram")
    assert refused.error
    assert "cannot both draft" in refused.error.message
    same(outcomes, truth)
    assert {outcome.stats.drafter for outcome in outcomes.values()} == {f"vllm {method}"}
    greedy = [outcome.stats for id, outcome in outcomes.items() if id.startswith("greedy")]
    assert sum(one.accepted for one in greedy) > 20
    if method == "draft_model":
        assert sum(one.forwards for one in greedy) < 0.4 * TOKENS * len(greedy)
