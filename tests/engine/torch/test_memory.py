"""Memory that is short, beginnings that are shared, rows that come and go: logits keep their bits."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from raydecode import models, registry
from raydecode.contracts import RowView
from raydecode.engine.torch.cache import PAGE
from raydecode.engine.torch.lane import TorchLane
from raydecode.events import OutcomeEvent
from raydecode.request import Card, Request
from raydecode.tree import TokenTree
from tests.engine.torch.builds import COMPILED
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, drain
from tests.engine.torch.test_families import GROUPED
from tests.methods.drafters import Drafting

Truth = dict[tuple[str, int], OutcomeEvent]


class Bushes(Drafting):
    """What will come, behind and beside paths that will not: accepted nodes lie in scattered columns."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def tree(self, row: RowView, budget: int, shared: Any) -> TokenTree:
        ahead = self.truth[row.id.request, row.id.sample].tokens[row.t : row.t + 5]
        make = random.Random(row.t)
        decoys = [(*ahead[:depth], make.randrange(20, 300), make.randrange(20, 300)) for depth in range(len(ahead))]
        return TokenTree.paths(row.pending, [*decoys, ahead])


@pytest.fixture
def bushes() -> Iterator[Callable[[list[Request], Truth], dict[str, Any]]]:
    """Gives requests this drafter; what the loop needs for it."""
    with registry.guests():
        registry.register("drafters", name="bushes")(Bushes)

        def plant(requests: list[Request], truth: Truth) -> dict[str, Any]:
            for i, request in enumerate(requests):
                spec = dataclasses.replace(request.decoding, drafter=Card("bushes"))
                requests[i] = dataclasses.replace(request, decoding=spec)
            return {"given": {("drafters", "bushes"): Bushes(truth)}}

        yield plant


def run_all_ways(lane: TorchLane, requests: list[Request], plant: Any, longest: int) -> Memory:
    """Alone first; then in batches with short memory, small chunks, shared pages, forks, trees, cancelled mates."""
    memory = Memory()
    truth = {k: v for one in requests for k, v in drain(Decoder(Recorder(lane, 1, memory, longest)), [one]).items()}
    pages = -(-longest // PAGE)
    ways: list[tuple[int, int, int, bool]] = [
        (8, 40, 3 * pages, False), (3, 512, pages, False), (8, 64, 4 * pages, True), (32, 512, 64 * pages, True),
    ]  # fmt: skip
    preempted = cached = accepted = 0
    for slots, chunk, count, drafts in ways:
        memory.compared, asked = 0, list(requests)
        more = plant(asked, truth) if drafts else {}
        recorder = Recorder(lane, slots, memory, longest, tokens=count * PAGE)
        gone = ask("gone", [*range(30, 30 + longest // 2)], max_tokens=longest // 3, ignore_eos=True)
        found = drain(Decoder(recorder, chunk=chunk, **more), [gone, *asked[::-1]], {4: "gone"})
        assert not memory.conflicts, f"{len(memory.conflicts)} of {memory.compared} logits rows changed their bits"
        assert memory.compared > sum(len(one.tokens) for one in truth.values()) // 2
        assert {key: found[key] for key in truth} == truth
        recorder.check(())
        preempted += sum(one.stats.preempted for one in found.values())
        cached += sum(one.stats.cached_tokens for one in found.values())
        accepted += sum(one.stats.accepted for one in found.values())
    assert min(preempted, cached, accepted) > 0, (preempted, cached, accepted)
    return memory


@pytest.mark.parametrize("compiled", COMPILED)
def test_bits_survive_everything_at_once(tiny_folder: Callable[..., Path], bushes: Any, compiled: bool) -> None:
    folder = tiny_folder(LlamaConfig(**GROUPED))
    lane = TorchLane(folder, dtype="float32", slots=1, context=126, compiled=compiled)
    make = random.Random(1)
    template = [make.randrange(20, 300) for _ in range(70)]
    rows = [
        ask(str(i), [*template[: 70 if i % 2 else 20], *(make.randrange(20, 300) for _ in range(1 + i))],
            max_tokens=14, ignore_eos=True, n=1 + i % 3)
        for i in range(5)
    ]  # fmt: skip
    run_all_ways(lane, rows, bushes, 126)


PROMPTS, LENGTH, PIECE = 50, 128, 10


@pytest.fixture(scope="module")
def fifty(smollm: Path, shared: Path) -> list[list[int]]:
    """Of Spec-Bench; before every fifth a few-shot beginning."""
    path = shared / "data/spec_bench/question.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    vocabulary = models.Vocabulary.of(smollm)
    texts = [json.loads(line)["turns"][0] for line in path.read_text(encoding="utf-8").splitlines()]
    ids = [found for text in texts[::3] if len(found := vocabulary.encode(text)) <= 400]
    assert len(ids) >= PROMPTS
    ids = ids[:: len(ids) // PROMPTS][:PROMPTS]
    template = [token for one in ids for token in one][:150]
    return [[*(template if i % 5 == 0 else ()), *one] for i, one in enumerate(ids)]


@pytest.fixture(scope="module", params=COMPILED)
def whole(smollm: Path, request: pytest.FixtureRequest) -> TorchLane:
    return TorchLane(smollm, dtype="float32", slots=1, context=1024, compiled=request.param)


def run_real_prompts(lane: TorchLane, prompts: list[list[int]], length: int, plant: Any) -> None:
    rows = [ask(str(i), ids, max_tokens=length, ignore_eos=True) for i, ids in enumerate(prompts)]
    run_all_ways(lane, rows, plant, max(map(len, prompts)) + length)


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("piece", range(PROMPTS // PIECE))
def test_real_prompts(whole: TorchLane, fifty: list[list[int]], bushes: Any, piece: int) -> None:
    """The flagship, in pieces of minutes: 50 prompts, 128 tokens each."""
    run_real_prompts(whole, fifty[piece * PIECE :][:PIECE], LENGTH, bushes)


@pytest.mark.slow
@pytest.mark.real_model
def test_real_prompts_at_once(whole: TorchLane, fifty: list[list[int]], bushes: Any) -> None:
    """All in batches of 32, few tokens each."""
    run_real_prompts(whole, fifty, 8, bushes)


@pytest.mark.slow
@pytest.mark.real_model
def test_real_prompts_in_bfloat16(smollm: Path, fifty: list[list[int]], bushes: Any) -> None:
    """Reduced: six beginnings, 12 tokens each. Without bfloat16 products a step costs seven of float32.

    Cut so that all need another page while they decode, which short memory does not have; two share their first.
    """
    lane = TorchLane(smollm, dtype="bfloat16", slots=1, context=1024)
    others = [ids[:60] for i, ids in enumerate(fifty) if i % 5 and len(ids) >= 60]
    run_real_prompts(lane, [fifty[0][:124], *others[:4], fifty[5][:124]], 12, bushes)
