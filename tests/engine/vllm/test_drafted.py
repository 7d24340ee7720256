"""Drafts inside the real vLLM, each engine in a process of its own: ours by row, vLLM's own for all rows.

Texts are those of plain vLLM and, sampled, the torch engine's: one seed, one text, whoever drafts.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raydecode.contracts import Engine
from raydecode.engine.vllm import DRAFTS, VllmEngine
from raydecode.engine.vllm.own import OwnRows
from raydecode.engine.vllm.params import plan
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Request, Text

pytestmark = [pytest.mark.real_model, pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTH, SLOTS, TOKENS = 384, 4, 32
PROMPTS = (
    "Copy the line three times.\nred green blue, red green blue\nred green blue,",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):",
    "The capital of France is Paris. The capital of Spain is Madrid. The capital of",
    "Once upon a time, in a small village by the sea,",
)
GREEDY = (Card("greedy"),)
CHAINS: dict[str, tuple[Card, ...]] = {
    "greedy": GREEDY,
    "plain": (),
    "top_p": (Card("top_p", {"p": 0.9}), Card("temperature", {"value": 1.0})),
    "penalty": (Card("temperature", {"value": 0.7}), Card("repetition_penalty", {"value": 1.2})),
    "mirostat2": (Card("mirostat2", {"tau": 3.0}),),
}
"""All but the first are drawn by our processor, on plain vLLM too; the last three in orders that vLLM does not have."""


@dataclass(frozen=True)
class Run:
    """Some rows on an engine that runs. reset: steps after which all rows are pre-empted and their cache forgotten."""

    requests: list[Request]
    reset: tuple[int, ...] = ()
    credulous: bool = False


def ask(name: str, i: int, drafter: str | None, **spec: Any) -> Request:
    card = Card(drafter) if drafter else None
    given = DecodingSpec(**{"max_tokens": TOKENS, "seed": 5, "sampler": CHAINS[name], "drafter": card} | spec)
    return Request(f"{name} {i} {drafter}", f"{name} {i}", Text(PROMPTS[i]), given)


def asked(drafters: Iterable[str | None]) -> list[Request]:
    """Every chain on every prompt with every drafter, neighbours of another kind each."""
    return [
        ask(name, i, drafter, logprobs=1 if i == 0 else None)
        for i in range(len(PROMPTS))
        for name in CHAINS
        for drafter in drafters
    ]


def run(engine: Engine, one: Run) -> dict[str, OutcomeEvent]:
    for request in one.requests:
        engine.submit(request)
    outcomes, steps = {}, 0
    while engine.busy:
        outcomes |= {event.row.request: event for event in engine.step() if isinstance(event, OutcomeEvent)}
        steps += 1
        if steps in one.reset:
            assert isinstance(engine, VllmEngine)
            assert engine._vllm.reset_prefix_cache(reset_running_requests=True)
        engine.wait(0.1)
    return outcomes


def accept_all(self: OwnRows, x_MV: Any, first: Any, kept: Any, outputs: Any, drafts: Any) -> list[list[int]]:
    """A broken verification: every drafted token is taken."""
    chosen = _verify(self, x_MV, first, kept, outputs, drafts)
    for one in kept:
        one.drawn.clear()
    return [[*draft, found[-1]] if draft else found for draft, found in zip(drafts, chosen, strict=True)]


_verify = OwnRows.verify


def run_there(folder: Path, arguments: Mapping[str, Any], runs: Sequence[Run]) -> list[dict[str, OutcomeEvent]]:
    engine, found = VllmEngine(folder, dtype="float32", slots=SLOTS, max_length=LENGTH, **arguments), []
    try:
        for one in runs:
            OwnRows.verify = accept_all if one.credulous else _verify  # type: ignore[method-assign]
            found.append(run(engine, one))
    finally:
        engine.close()
    return found


def elsewhere(folder: Path, arguments: Mapping[str, Any], *runs: Run) -> list[dict[str, OutcomeEvent]]:
    """In a process of its own: vLLM allows few engines per process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_there, folder, arguments, runs).result()


@pytest.fixture(scope="module")
def truth(vllm_engine: VllmEngine, smollm: Path) -> dict[str, OutcomeEvent]:
    """Plain decoding: greedy rows by vLLM, sampled ones by both engines, with one noise."""
    from raydecode.engine.torch import TorchEngine

    rows = asked([None])
    theirs = run(TorchEngine(smollm, dtype="float32", slots=SLOTS, max_length=LENGTH), Run(rows))
    greedy = [row for row in rows if row.decoding.sampler == GREEDY]
    ours = [row for row in rows if plan(row.decoding.sampler, own=True).own is not None]
    assert len(ours) == 4 * len(PROMPTS)
    plain = run(vllm_engine, Run(greedy + ours))
    same({row.id: plain[row.id] for row in ours}, theirs)
    return theirs | plain


def same(outcomes: Mapping[str, OutcomeEvent], truth: Mapping[str, OutcomeEvent]) -> None:
    for id, outcome in outcomes.items():
        plain = truth[" ".join([*id.split()[:2], "None"])]
        assert outcome.error is None, (id, outcome.error)
        assert (outcome.tokens, outcome.text, outcome.reason) == (plain.tokens, plain.text, plain.reason), id
        logps, wanted = ([logp for logp, _ in one.logprobs] for one in (outcome, plain))
        assert logps == pytest.approx(wanted, abs=2e-3)


def accounted(outcomes: Mapping[str, OutcomeEvent]) -> None:
    for id, outcome in outcomes.items():
        stats = outcome.stats
        assert stats.draft_failures == 0, id
        assert 0 <= stats.accepted <= stats.drafted, id
        assert stats.forwards + stats.accepted == len(outcome.tokens), id
        if stats.drafter:
            assert sum(one.forwards for one in stats.drafting.values()) == stats.forwards, id
            assert stats.drafting[stats.drafter].drafted == stats.drafted, id


def test_our_drafters_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent]) -> None:
    rows = asked([None, "ngram", "suffix", "aded"])
    ended = [
        ask("greedy", 0, "ngram", stop=(b"blue, red",)),
        ask("greedy", 0, "token_recycling"),
        replace(ask("greedy", 1, "ngram"), resume=(truth["greedy 1 None"].tokens[:7],)),
    ]
    stop, refused, resumed = (replace(one, id=f"{one.id} {i}") for i, one in enumerate(ended))
    some = [row for row in rows if row.id.split()[0] in ("greedy", "mirostat2", "top_p") and row.decoding.drafter]
    outcomes, again, broken = elsewhere(
        smollm,
        {"drafts": DRAFTS},
        Run([*rows, stop, refused, resumed]),
        Run(some[::2], reset=(3, 4, 11)),
        Run([ask("top_p", i, "aded") for i in range(len(PROMPTS))], credulous=True),
    )
    cut, failed, went_on = (outcomes.pop(one.id) for one in (stop, refused, resumed))
    same(outcomes, truth)
    same(again, truth)
    accounted(outcomes)
    for id, outcome in outcomes.items():
        stats, name = outcome.stats, id.split()[2]
        assert stats.drafter == (None if name == "None" else name)
        assert (stats.drafted > 0) <= (name != "None")
    for name in ("ngram", "suffix", "aded"):
        mine = [one.stats for id, one in outcomes.items() if id.endswith(name)]
        assert sum(one.accepted for one in mine) > 50, name
        assert all(one.draft_s > 0 and one.drafter_bytes > 0 for one in mine), name
    assert sum(one.stats.accepted for one in again.values()) > 20
    assert any(broken[id].tokens != truth[id.replace("aded", "None")].tokens for id in broken)
    assert truth["greedy 0 None"].text.startswith(cut.text)
    assert cut.reason == "stop"
    assert failed.error
    assert (failed.error.kind, "token ids only" in failed.error.message) == ("Refused", True)
    assert went_on.tokens == truth["greedy 1 None"].tokens


def test_prompts_in_chunks_and_trimmed_drafts_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent]) -> None:
    """vLLM gives a row at most eight tokens per step: of its prompt, and of its draft."""
    options = {"enable_chunked_prefill": True, "long_prefill_token_threshold": 8}
    rows = [row for row in asked(["suffix", "aded"]) if row.id.split()[0] in ("greedy", "penalty", "mirostat2")]
    (outcomes,) = elsewhere(smollm, {"drafts": DRAFTS, "options": options}, Run(rows, reset=(5,)))
    same(outcomes, truth)
    assert sum(one.stats.accepted for one in outcomes.values()) > 50


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_vllm_s_own_methods_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent], method: str) -> None:
    """The draft model is the model itself: what it drafts greedily is nearly always the greedy row's token."""
    given: Any = "ngram" if method == "ngram" else {"model": str(smollm), "num_speculative_tokens": 3}
    refused = ask("plain", 0, "ngram")
    (outcomes,) = elsewhere(smollm, {"options": {"speculative_config": given}}, Run([*asked([None]), refused]))
    error = outcomes.pop(refused.id).error
    assert error
    assert "cannot both draft" in error.message
    same(outcomes, truth)
    accounted(outcomes)
    assert {outcome.stats.drafter for outcome in outcomes.values()} == {f"vllm {method}"}
    greedy = [outcome.stats for id, outcome in outcomes.items() if id.startswith("greedy")]
    assert sum(one.accepted for one in greedy) > 20
    if method == "draft_model":
        assert sum(one.forwards for one in greedy) < 0.4 * TOKENS * len(greedy)


def test_prompts_in_chunks_without_drafts_leave_every_text(smollm: Path, truth: dict[str, OutcomeEvent]) -> None:
    """No row has a generator of vLLM's, which could not be set back; what a chunk's end samples is thrown away."""
    options = {"enable_chunked_prefill": True, "long_prefill_token_threshold": 8}
    (outcomes,) = elsewhere(smollm, {"options": options}, Run(asked([None]), reset=(5,)))
    same(outcomes, truth)
