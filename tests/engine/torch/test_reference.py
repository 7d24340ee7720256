"""transformers as the reference: greedy texts, log-probabilities, penalties; then stops, limits and deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card, DecodingSpec, Ids, Request, Text
from tests.engine.torch.builds import COMPILED
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, demo_prompts, drain

pytestmark = pytest.mark.real_model
GREEDY = (Card("greedy"),)


@pytest.fixture(scope="module")
def prompts(lane: TorchLane, root: Path) -> list[list[int]]:
    return [lane.vocabulary.encode(row["prompt"]) for row in demo_prompts(root, 24, longest=160)]


def loop(lane: TorchLane, slots: int = 16, context: int | None = None, **options: Any) -> Decoder:
    return Decoder(Recorder(lane, slots, Memory(), context), **options)


def generated(reference: Any, ids: list[int], length: int) -> list[int]:
    with torch.inference_mode():
        out = reference.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=length, do_sample=False
        )
    return out[0, len(ids) :].tolist()


def test_greedy_is_generate(lane: TorchLane, reference: Any, prompts: list[list[int]]) -> None:
    assert len(prompts) >= 24
    requests = [ask(str(i), ids, sampler=GREEDY, max_tokens=8) for i, ids in enumerate(prompts)]
    found = drain(loop(lane), requests)
    for i, ids in enumerate(prompts):
        assert list(found[str(i), 0].tokens) == generated(reference, ids, 8), f"prompt {i}"


@pytest.mark.slow
@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("piece", range(5))
def test_greedy_is_generate_on_fifty_prompts(
    lane: TorchLane, reference: Any, root: Path, piece: int, compiled: bool, request: pytest.FixtureRequest
) -> None:
    """Long ones among them, 32 tokens each, in batches of ten rows."""
    prompts = [lane.vocabulary.encode(row["prompt"]) for row in demo_prompts(root, 50)]
    assert len(prompts) == 50
    prompts = prompts[piece::5]
    requests = [ask(str(i), ids, sampler=GREEDY, max_tokens=32) for i, ids in enumerate(prompts)]
    used = request.getfixturevalue("compiled_lane") if compiled else lane
    found = drain(loop(used), requests)
    wrong = {i for i, ids in enumerate(prompts) if list(found[str(i), 0].tokens) != generated(reference, ids, 32)}
    assert not wrong


def test_logprobs_are_log_softmax(lane: TorchLane, reference: Any, prompts: list[list[int]]) -> None:
    outcome = drain(loop(lane), [ask("a", prompts[0], max_tokens=6, logprobs=3, ignore_eos=True)])["a", 0]
    ids = [*prompts[0], *outcome.tokens]
    with torch.inference_mode():
        truth = reference(torch.tensor([ids])).logits[0, len(prompts[0]) - 1 : -1].float().log_softmax(-1)
    for t, (logp, top) in enumerate(outcome.logprobs):
        assert logp == pytest.approx(float(truth[t, outcome.tokens[t]]), abs=2e-4)
        best = truth[t].topk(3)
        assert [token for token, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=2e-4)


def test_repetition_penalty_is_transformers(lane: TorchLane, reference: Any, prompts: list[list[int]]) -> None:
    chain = (Card("repetition_penalty", {"value": 1.3}), Card("greedy"))
    outcome = drain(loop(lane), [ask("a", prompts[1], sampler=chain, max_tokens=10, ignore_eos=True)])["a", 0]
    processor, ids = RepetitionPenaltyLogitsProcessor(1.3), torch.tensor([[*prompts[1], *outcome.tokens]])
    with torch.inference_mode():
        logits = reference(ids).logits[0].float()
    for t, token in enumerate(outcome.tokens):
        end = len(prompts[1]) + t
        assert int(processor(ids[:, :end], logits[end - 1 : end].clone()).argmax()) == token


def test_frequency_and_presence_penalties(lane: TorchLane, reference: Any, prompts: list[list[int]]) -> None:
    """The OpenAI formula on the output alone: logit - presence * (count > 0) - frequency * count."""
    chain = (Card("presence_penalty", {"value": 0.7}), Card("frequency_penalty", {"value": 0.9}), Card("greedy"))
    outcome = drain(loop(lane), [ask("a", prompts[2], sampler=chain, max_tokens=10, ignore_eos=True)])["a", 0]
    ids = [*prompts[2], *outcome.tokens]
    with torch.inference_mode():
        logits = reference(torch.tensor([ids])).logits[0].float()
    for t, token in enumerate(outcome.tokens):
        x = logits[len(prompts[2]) + t - 1].clone()
        count = torch.bincount(torch.tensor(outcome.tokens[:t], dtype=torch.int64), minlength=x.numel())
        assert int((x - 0.7 * (count > 0) - 0.9 * count).argmax()) == token


def test_stops_and_eos(lane: TorchLane, prompts: list[list[int]]) -> None:
    free = drain(loop(lane), [ask("a", prompts[0], sampler=GREEDY, max_tokens=12, ignore_eos=True)])["a", 0]
    assert (free.reason, len(free.tokens)) == ("length", 12)
    at = len(free.text) // 2
    stop = free.text[at : at + 3]
    cut = drain(loop(lane), [ask("a", prompts[0], sampler=GREEDY, max_tokens=12, ignore_eos=True, stop=(stop,))])[
        "a", 0
    ]
    assert (cut.reason, cut.text) == ("stop", free.text[: free.text.index(stop)])
    token = free.tokens[3]
    ended = drain(
        loop(lane), [ask("a", prompts[0], sampler=GREEDY, max_tokens=12, ignore_eos=True, stop_tokens=(token,))]
    )["a", 0]
    assert (ended.reason, ended.tokens) == ("stop", free.tokens[: free.tokens.index(token) + 1])


def test_eos_ends_unless_ignored(lane: TorchLane, prompts: list[list[int]]) -> None:
    """The fourth token of a text is declared an end of text: it ends the row and is no part of its text."""
    free = drain(loop(lane), [ask("a", prompts[3], sampler=GREEDY, max_tokens=6, ignore_eos=True)])["a", 0]
    recorder = Recorder(lane, 2, Memory())
    recorder.eos = frozenset({free.tokens[3]})
    at = free.tokens.index(free.tokens[3]) + 1
    found = drain(
        Decoder(recorder),
        [
            ask("ends", prompts[3], sampler=GREEDY, max_tokens=6),
            ask("on", prompts[3], sampler=GREEDY, max_tokens=6, ignore_eos=True),
        ],
    )
    assert (found["ends", 0].reason, found["ends", 0].tokens) == ("eos", free.tokens[:at])
    assert found["ends", 0].text == b"".join(lane.token_bytes[token] for token in free.tokens[: at - 1])
    assert (found["on", 0].reason, found["on", 0].tokens) == ("length", free.tokens)


def test_deadline_ends_one_row(lane: TorchLane, prompts: list[list[int]]) -> None:
    clock = iter(range(10_000))
    requests = [
        ask("slow", prompts[0], max_tokens=6, ignore_eos=True, deadline_s=2.0),
        ask("free", prompts[1], max_tokens=6, ignore_eos=True),
    ]
    found = drain(loop(lane, clock=lambda: float(next(clock))), requests)
    assert found["slow", 0].error.kind == "Deadline"
    assert found["free", 0].reason == "length"


def test_what_never_fits_is_an_error_row(lane: TorchLane, prompts: list[list[int]]) -> None:
    wide = [*prompts[0], *prompts[1], *prompts[2], *prompts[3]][:64]
    requests = [
        ask("long", wide, max_tokens=8), ask("short", prompts[0][:10], max_tokens=3, ignore_eos=True),
        Request("cut", "cut", Ids(tuple(wide)), DecodingSpec(max_tokens=8, ignore_eos=True), overflow="cut_left"),
        Request("empty", "empty", Text(""), DecodingSpec(max_tokens=8)),
        Request("token", "token", Ids((5, 10**6)), DecodingSpec(max_tokens=8)),
    ]  # fmt: skip
    found = drain(loop(lane, 2, context=64), requests)
    assert found["long", 0].error.kind == "ContextOverflow"
    assert found["empty", 0].error.kind == "EmptyPrompt"
    assert found["token", 0].error.kind == "BadToken"
    assert {found["short", 0].reason, found["cut", 0].reason} == {"length"}


def test_options_and_lengths_are_checked(smollm: Path) -> None:
    from raydecode.errors import UserError

    with pytest.raises(UserError, match="nearest: chunk"):
        TorchEngine(smollm, options={"chunck": 4})
    with pytest.raises(UserError, match="max_length"):
        TorchEngine(smollm, max_length=10**6)
