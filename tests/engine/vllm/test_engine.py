"""The engine on the quickstart model, float32: against transformers, and row by row against its contract."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raydecode.contracts import Engine
from raydecode.engine.vllm import VllmEngine
from raydecode.errors import Refused, UserError
from raydecode.events import Event, OutcomeEvent, StepEvent, TextEvent, TokenEvent
from raydecode.request import Card, DecodingSpec, Ids, Messages, Prompt, Request, RowId, Text

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]  # a cold import on a busy machine takes minutes

GREEDY = (Card("greedy"),)
PARIS = Text("The capital of France is")
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "List three fruits:\n1.",
    "Q: What is 7 times 8?\nA:",
    "In 1969, Neil Armstrong",
    "import numpy as np\n\nx = ",
    "The opposite of hot is",
    "Dear Sir or Madam,\n",
    "SELECT name FROM",
    "Résumé: le chat est",
)


@dataclass
class Seen:
    """What came out of a run, by row."""

    outcomes: dict[RowId, OutcomeEvent] = field(default_factory=dict)
    tokens: dict[RowId, list[TokenEvent]] = field(default_factory=dict)
    shown: dict[RowId, bytes] = field(default_factory=dict)
    steps: dict[RowId, int] = field(default_factory=dict)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.row not in self.outcomes, "an event after the outcome"
            match event:
                case TokenEvent(row=row):
                    self.tokens.setdefault(row, []).append(event)
                case OutcomeEvent(row=row):
                    self.outcomes[row] = event
                case TextEvent(row=row, bytes=data):
                    self.shown[row] = self.shown.get(row, b"") + data
                case StepEvent(row=row, emitted=emitted):
                    self.steps[row] = self.steps.get(row, 0) + len(emitted)

    @property
    def only(self) -> OutcomeEvent:
        (outcome,) = self.outcomes.values()
        return outcome


def run(engine: VllmEngine, *requests: Request) -> Seen:
    """All requests to their ends, and what holds for every run."""
    seen = Seen()
    for request in requests:
        engine.submit(request)
    while engine.busy:
        seen.add(engine.step())
        engine.wait(0.1)
    assert engine.running == ()
    assert engine.waiting == 0
    for row, outcome in seen.outcomes.items():
        events = seen.tokens.get(row, [])
        assert [event.t for event in events] == list(range(len(outcome.tokens) - len(events), len(outcome.tokens)))
        assert tuple(event.token for event in events) == outcome.tokens[len(outcome.tokens) - len(events) :]
        assert seen.steps.get(row, 0) == len(events)
        if outcome.reason in ("eos", "stop", "length") and len(events) == len(outcome.tokens):
            assert seen.shown.get(row, b"") == outcome.text
    return seen


def ask(id: str, prompt: Prompt = PARIS, /, *, overflow: str = "error", resume: tuple = (), **spec: Any) -> Request:
    return Request(id, id, prompt, DecodingSpec(**{"max_tokens": 8} | spec), resume=resume, overflow=overflow)


def test_it_is_an_engine(vllm_engine: VllmEngine) -> None:
    engine: Engine = vllm_engine
    assert not engine.busy
    assert vllm_engine.dtype == "float32"
    assert vllm_engine.context == 384
    assert engine.step() == []


def test_the_process_is_left_as_it_was(vllm_engine: VllmEngine) -> None:
    """vLLM preloads libraries into later subprocesses and turns `torch.set_num_threads` off; both are taken back."""
    import torch

    assert "libgomp" not in os.environ.get("LD_PRELOAD", "")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "field", "says"),
    [
        ({"options": {"enforce_eagr": True}}, "engine.options.enforce_eagr", "nearest: enforce_eager"),
        ({"options": {"max_num_seqs": 4}}, "engine.options.max_num_seqs", "engine.slots"),
        ({"options": {"kv_cache_dtype": "fp9"}}, "engine", "does not start"),
        ({"max_length": 10**6}, "engine.max_length", "nearest: 8192"),
        ({"dtype": "float12"}, "engine.dtype", "float12"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(
    vllm_engine: VllmEngine, smollm: Path, arguments: dict, field: str, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        VllmEngine(smollm, **arguments)
    assert caught.value.field == field
    assert says in str(caught.value)


def test_greedy_tokens_are_those_of_transformers(vllm_engine: VllmEngine, smollm: Path) -> None:
    import torch

    from raydecode.models import load_module

    seen = run(vllm_engine, *(ask(str(i), Text(p), max_tokens=16, sampler=GREEDY) for i, p in enumerate(PROMPTS)))
    module = load_module(smollm, "float32")
    end = sorted(vllm_engine.vocabulary.eos_ids)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([vllm_engine.vocabulary.encode(prompt)])
        with torch.inference_mode():
            out = module.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, eos_token_id=end,
                pad_token_id=end[0],
            )  # fmt: skip
        assert seen.outcomes[RowId(str(i))].tokens == tuple(out[0, ids.shape[1] :].tolist()), prompt


def test_finish_reasons_and_bytes(vllm_engine: VllmEngine) -> None:
    chat = Messages(({"role": "user", "content": "Say hi."},))
    seen = run(
        vllm_engine, ask("eos", chat, max_tokens=60, sampler=GREEDY), ask("length", sampler=GREEDY),
        ask("stop", sampler=GREEDY, stop=(b"\n", b"nothing like this"), max_tokens=60),
    )  # fmt: skip
    by = {row.request: outcome for row, outcome in seen.outcomes.items()}
    assert {name: outcome.reason for name, outcome in by.items()} == {"eos": "eos", "length": "length", "stop": "stop"}
    assert by["eos"].tokens[-1] in vllm_engine.vocabulary.eos_ids
    assert by["eos"].text == vllm_engine.vocabulary.decode(by["eos"].tokens[:-1])
    assert len(by["length"].tokens) == 8
    assert {name: outcome.cause for name, outcome in by.items()} == {"eos": "", "length": "", "stop": "\n"}
    assert b"\n" not in by["stop"].text
    assert b"\n" in vllm_engine.vocabulary.decode(by["stop"].tokens)


def test_a_stop_string_may_lie_across_tokens_and_end_inside_one(vllm_engine: VllmEngine) -> None:
    plain = run(vllm_engine, ask("plain", sampler=GREEDY, max_tokens=12)).only
    pieces = [vllm_engine.vocabulary.token_bytes[token] for token in plain.tokens]
    i = next(i for i in range(1, 11) if len(pieces[i]) > 1 and pieces[i + 1])
    stop = pieces[i][1:] + pieces[i + 1][:1]
    cut = run(vllm_engine, ask("cut", sampler=GREEDY, max_tokens=12, stop=(stop,))).only
    assert cut.reason == "stop"
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.tokens == plain.tokens[: len(cut.tokens)]
    assert len(cut.tokens) <= i + 2


def test_stop_tokens_and_ignore_eos(vllm_engine: VllmEngine) -> None:
    chat = Messages(({"role": "user", "content": "Say hi."},))
    plain = run(vllm_engine, ask("plain", chat, sampler=GREEDY, max_tokens=60)).only
    third = plain.tokens[2]
    where = plain.tokens.index(third)
    stopped = run(vllm_engine, ask("stop", chat, sampler=GREEDY, stop_tokens=(third,))).only
    assert (stopped.reason, stopped.tokens) == ("stop", plain.tokens[: where + 1])
    assert stopped.cause == f"token {third}"
    assert stopped.text == vllm_engine.vocabulary.decode(plain.tokens[:where])
    beyond = run(vllm_engine, ask("on", chat, sampler=GREEDY, max_tokens=60, ignore_eos=True)).only
    assert (beyond.reason, len(beyond.tokens)) == ("length", 60)
    assert beyond.tokens[: len(plain.tokens)] == plain.tokens


@pytest.fixture(params=["raydecode", "vllm"])
def draws(request: pytest.FixtureRequest, vllm_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who draws: as an engine started with this option decides it, row by row."""
    monkeypatch.setattr(vllm_engine, "_own", request.param == "raydecode")
    return request.param


theirs = pytest.mark.parametrize("draws", ["vllm"], indirect=True)


@pytest.mark.usefixtures("draws")
def test_samples_repeat_and_differ(vllm_engine: VllmEngine) -> None:
    def texts(id: str, seed: int, **spec: Any) -> dict[int, bytes]:
        request = Request("r" + str(seed), id, PARIS, DecodingSpec(max_tokens=8, n=3, seed=seed, **spec))
        return {row.sample: outcome.text for row, outcome in run(vllm_engine, request).outcomes.items()}

    first = texts("a", 3)
    assert sorted(first) == [0, 1, 2]
    assert len(set(first.values())) == 3
    assert texts("a", 3) == first
    assert texts("b", 3) != first
    assert texts("a", 4) != first


@pytest.mark.usefixtures("draws")
def test_a_row_s_draw_does_not_depend_on_the_batch(vllm_engine: VllmEngine) -> None:
    spec = {
        "seed": 5,
        "sampler": (Card("temperature", {"value": 0.8}), Card("top_k", {"k": 50}), Card("top_p", {"p": 0.95})),
    }
    alone = {i: run(vllm_engine, ask(f"r{i}", Text(PROMPTS[i]), **spec)).only.tokens for i in range(3)}
    others = [ask(f"x{i}", Text(PROMPTS[i + 3]), max_tokens=5, seed=i) for i in range(4)]
    crowd = run(vllm_engine, *others, *(ask(f"r{i}", Text(PROMPTS[i]), **spec) for i in (2, 0, 1)))
    assert {i: crowd.outcomes[RowId(f"r{i}")].tokens for i in range(3)} == alone


def test_samples_share_their_prompt(vllm_engine: VllmEngine) -> None:
    long = Ids(tuple(range(1000, 1300)))
    seen = run(vllm_engine, ask("shared", long, n=4, max_tokens=2, seed=1))
    cached = sorted(outcome.stats.cached_tokens for outcome in seen.outcomes.values())
    assert cached == [0, 256, 256, 256]
    assert {outcome.stats.prompt_tokens for outcome in seen.outcomes.values()} == {300}


def test_logprobs_are_the_raw_model_s(vllm_engine: VllmEngine) -> None:
    hot = (Card("frequency_penalty", {"value": 1.0}), Card("temperature", {"value": 0.5}), Card("top_k", {"k": 3}))
    plain = run(vllm_engine, ask("plain", sampler=GREEDY, logprobs=3, max_tokens=6))
    shaped = run(vllm_engine, ask("shaped", sampler=hot, logprobs=3, max_tokens=1)).only
    (events,) = plain.tokens.values()
    assert plain.only.logprobs == tuple((event.logp, event.top) for event in events)
    for event in events:
        assert len(event.top) == 3
        assert event.top[0] == (event.token, event.logp)
        assert [logp for _, logp in event.top] == sorted((logp for _, logp in event.top), reverse=True)
        assert sum(math.exp(logp) for _, logp in event.top) <= 1.0001
    assert dict(shaped.logprobs[0][1]) == pytest.approx(dict(plain.only.logprobs[0][1]))
    none = run(vllm_engine, ask("none", sampler=GREEDY, logprobs=0, max_tokens=2)).only
    assert [top for _, top in none.logprobs] == [(), ()]
    assert none.logprobs[0][0] == pytest.approx(plain.only.logprobs[0][0])


def test_cancel_frees_its_slots_before_the_next_step(vllm_engine: VllmEngine) -> None:
    seen = Seen()
    for i in range(6):
        vllm_engine.submit(ask(f"r{i}", Text(PROMPTS[i]), sampler=GREEDY, max_tokens=6, ignore_eos=True))
    seen.add(vllm_engine.step())
    assert (len(vllm_engine.running), vllm_engine.waiting) == (4, 2)
    vllm_engine.cancel("r0")
    vllm_engine.cancel("r5")
    vllm_engine.cancel("nobody")
    assert (len(vllm_engine.running), vllm_engine.waiting) == (3, 1)
    seen.add(vllm_engine.step())
    assert {row.request for row in vllm_engine.running} == {"r1", "r2", "r3", "r4"}
    while vllm_engine.busy:
        seen.add(vllm_engine.step())
    reasons = {row.request: outcome.reason for row, outcome in seen.outcomes.items()}
    assert reasons == {"r0": "cancelled", "r5": "cancelled"} | dict.fromkeys(["r1", "r2", "r3", "r4"], "length")
    assert len(seen.outcomes[RowId("r0")].tokens) == 1
    assert seen.outcomes[RowId("r5")].tokens == ()
    assert not vllm_engine._vllm.has_unfinished_requests()


def test_cancelling_a_request_ends_all_its_samples(vllm_engine: VllmEngine) -> None:
    vllm_engine.submit(ask("many", n=6, max_tokens=20))
    vllm_engine.step()
    vllm_engine.cancel("many")
    outcomes = [event for event in vllm_engine.step() if isinstance(event, OutcomeEvent)]
    assert sorted((event.row.sample, event.reason) for event in outcomes) == [(i, "cancelled") for i in range(6)]
    assert not vllm_engine.busy


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "overflow", "expected"),
    [
        (380, 8, "error", "ContextOverflow"),
        (380, 8, "shorten", 4),
        (380, 8, "cut_left", 8),
        (380, 8, "cut_right", 8),
        (384, 8, "shorten", "ContextOverflow"),
        (2, 384, "cut_left", "ContextOverflow"),
        (376, 8, "error", 8),
        (0, 8, "cut_left", "EmptyPrompt"),
    ],
)
def test_overflow(
    vllm_engine: VllmEngine, prompt_len: int, max_tokens: int, overflow: str, expected: int | str
) -> None:
    ids = Ids(tuple(1000 + i for i in range(prompt_len)))
    request = ask("r", ids, sampler=GREEDY, max_tokens=max_tokens, overflow=overflow, ignore_eos=True)
    outcome = run(vllm_engine, request).only
    if isinstance(expected, str):
        assert outcome.error
        assert (outcome.reason, outcome.error.stage, outcome.error.kind) == ("error", "admission", expected)
        return
    assert (outcome.reason, len(outcome.tokens)) == ("length", expected)
    assert outcome.stats.prompt_tokens + expected == min(prompt_len + max_tokens, 384)
    if overflow.startswith("cut"):
        kept = ids.ids[-376:] if overflow == "cut_left" else ids.ids[:376]
        assert outcome.tokens == run(vllm_engine, ask("k", Ids(kept), sampler=GREEDY, ignore_eos=True)).only.tokens


def test_a_bad_row_ends_alone(vllm_engine: VllmEngine) -> None:
    inside = (Card("dola"), Card("temperature", {"value": 0.7}))
    seen = run(
        vllm_engine, ask("good", sampler=GREEDY), ask("refused", sampler=inside), ask("token", Ids((1, 10**6))),
        ask("resumed", sampler=GREEDY, resume=((10**6,),)), ask("wide", sampler=GREEDY, logprobs=10**6),
        ask("role", Messages(({"content": "no role"},))), ask("late", sampler=GREEDY, deadline_s=0.0),
    )  # fmt: skip
    errors = {row.request: outcome.error for row, outcome in seen.outcomes.items()}
    assert errors["good"] is None
    assert errors["refused"].kind == "Refused"
    assert "cannot run sampler 'dola'" in errors["refused"].message
    assert errors["token"].kind == errors["resumed"].kind == "BadToken"
    assert (errors["wide"].stage, errors["wide"].kind) == ("engine", "VLLMValidationError")
    assert errors["role"].stage == "prompt"
    assert (errors["late"].stage, errors["late"].kind) == ("engine", "Deadline")
    refusal = vllm_engine.refuse(DecodingSpec(sampler=inside))
    assert isinstance(refusal, Refused)
    assert vllm_engine.refuse(DecodingSpec(sampler=GREEDY)) is None


def test_a_greedy_row_is_resumed_anywhere(vllm_engine: VllmEngine) -> None:
    spec = {"sampler": GREEDY, "max_tokens": 10, "logprobs": 1, "stop": (b"\n\n",)}
    whole = run(vllm_engine, ask("r", **spec)).only
    for k in range(1, len(whole.tokens) + 1):
        seen = run(vllm_engine, ask("r", resume=(whole.tokens[:k],), **spec))
        assert (seen.only.tokens, seen.only.text, seen.only.reason) == (whole.tokens, whole.text, whole.reason)
        assert [event.t for events in seen.tokens.values() for event in events] == list(range(k, len(whole.tokens)))
        assert [logp for logp, _ in seen.only.logprobs] == pytest.approx([logp for logp, _ in whole.logprobs], abs=1e-3)
    bare = run(vllm_engine, ask("r", resume=(whole.tokens,), **spec | {"logprobs": None})).only
    assert (bare.tokens, bare.text, bare.reason) == (whole.tokens, whole.text, whole.reason)


def test_samples_are_resumed_each_from_its_own(vllm_engine: VllmEngine) -> None:
    spec = {"sampler": (Card("min_p", {"p": 0.05}), Card("dry")), "max_tokens": 6, "n": 2}
    whole = run(vllm_engine, ask("r", **spec)).outcomes
    first, second = (whole[RowId("r", sample)].tokens for sample in range(2))
    assert first != second
    seen = run(vllm_engine, ask("r", resume=(first[:2], second), **spec))
    assert {row: (one.tokens, one.text) for row, one in seen.outcomes.items()} == {
        row: (one.tokens, one.text) for row, one in whole.items()
    }
    assert {row: [event.t for event in events] for row, events in seen.tokens.items()} == {
        RowId("r", 0): list(range(2, len(first)))
    }


@pytest.mark.parametrize(
    "spec",
    [{}, {"sampler": (Card("repetition_penalty", {"value": 1.2}), Card("greedy"))}, {"sampler": GREEDY, "n": 2}],
    ids=["sampled", "penalty", "samples"],
)
@theirs
@pytest.mark.usefixtures("draws")
def test_what_cannot_be_resumed_is_said(vllm_engine: VllmEngine, spec: dict) -> None:
    outcomes = run(vllm_engine, ask("r", resume=((30,),), **spec)).outcomes
    assert len(outcomes) == spec.get("n", 1)
    for outcome in outcomes.values():
        assert outcome.error
        assert outcome.error.kind == "BadResume"


@theirs
@pytest.mark.usefixtures("draws")
def test_long_seeded_prompts_side_by_side(vllm_engine: VllmEngine) -> None:
    """With chunked prefill this ends vLLM's engine on CPU: its generators cannot be set back."""
    rows = [ask(f"r{i}", Ids(tuple(range(500 + i, 880 + i))), max_tokens=2, seed=i, ignore_eos=True) for i in range(8)]
    assert {outcome.reason for outcome in run(vllm_engine, *rows).outcomes.values()} == {"length"}


def test_statistics(vllm_engine: VllmEngine) -> None:
    rows = [ask(f"r{i}", Text(PROMPTS[i]), sampler=GREEDY, max_tokens=4, ignore_eos=True) for i in range(5)]
    seen = run(vllm_engine, *rows)
    for row, outcome in seen.outcomes.items():
        stats = outcome.stats
        assert stats.forwards == 4
        assert 0 <= stats.queued_s <= stats.first_token_s <= stats.total_s
        assert stats.prompt_tokens == len(vllm_engine.vocabulary.encode(PROMPTS[int(row.request[1:])]))


def test_who_draws_is_said(vllm_engine: VllmEngine) -> None:
    assert "draw the torch engine's noise, whoever drafts" in vllm_engine.detail
    refused = vllm_engine.refuse(DecodingSpec())
    assert refused is None
