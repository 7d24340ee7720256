"""One seed, one text, one set of bits: whatever shares the batch, the chunk, the slot or the draft."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from raydecode import registry
from raydecode.contracts import Needs
from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.lane import TorchLane
from raydecode.events import OutcomeEvent
from raydecode.request import Card, Request
from raydecode.tree import TokenTree
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, demo_prompts, drain
from tests.engine.torch.test_families import GROUPED
from tests.engine.torch.twins import TWINS

pytestmark = pytest.mark.real_model
LENGTH = 8
SIZES = 9, 23, 31, 40, 120
"""Prompt lengths; the last row crosses 128 keys while it decodes."""


class Oracle:
    """Proposes the true continuation, with every third token wrong for some rows."""

    needs, scope = Needs(), "row"

    def __init__(self, truth: dict[str, tuple[int, ...]]) -> None:
        self.truth = truth

    def open_shared(self) -> None: ...
    def open(self, row: Any, options: Any) -> None: ...

    def propose(self, rows: Any, budgets: Any, shared: Any, options: Any) -> Iterator[Any]:
        trees = []
        for row, budget in zip(rows, budgets, strict=True):
            ahead = list(self.truth[row.id.request][row.t : row.t + min(budget, 5)])
            if len(row.id.request) % 2 or row.t % 3 == 0:
                ahead = [(token + 1) % 1000 + 20 if i % 3 == 2 else token for i, token in enumerate(ahead)]
            trees.append(TokenTree.chain([row.pending, *ahead]))
        return trees
        yield

    def observe(self, records: Any, shared: Any, options: Any) -> list[None]:
        return [None] * len(records)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory()


@pytest.fixture(scope="module")
def requests(lane: TorchLane, root: Path) -> list[Request]:
    text = [token for row in demo_prompts(root, 8) for token in lane.vocabulary.encode(row["prompt"])]
    assert len(text) > sum(SIZES)
    starts = [sum(SIZES[:i]) for i in range(len(SIZES))]
    return [
        ask("r" * (i + 1), text[start : start + size], max_tokens=LENGTH, ignore_eos=True, logprobs=2)
        for i, (start, size) in enumerate(zip(starts, SIZES, strict=True))
    ]


@pytest.fixture(scope="module")
def alone(lane: TorchLane, memory: Memory, requests: list[Request]) -> dict[tuple[str, int], OutcomeEvent]:
    """The truth: every row by itself, in one slot."""
    loop = Decoder(Recorder(lane, 1, memory))
    return {key: outcome for request in requests for key, outcome in drain(loop, [request]).items()}


def same(found: dict, truth: dict, memory: Memory, at_least: int = LENGTH) -> None:
    assert memory.compared >= at_least, "the scenario repeated nothing"
    assert not memory.conflicts, f"{len(memory.conflicts)} of {memory.compared} logits rows changed their bits"
    for key, outcome in found.items():
        assert outcome == truth[key], f"{key}: {outcome.error or outcome.tokens}"


@pytest.mark.parametrize(("slots", "chunk"), [(16, 512), (16, 48), (4, 16), (1, 16)])
def test_batch_slots_and_chunks(lane, memory, requests, alone, slots: int, chunk: int) -> None:
    memory.compared = 0
    found = drain(Decoder(Recorder(lane, slots, memory), chunk=chunk), requests[: 2 if slots == 1 else None])
    same(found, alone, memory)


def test_reversed_order(lane, memory, requests, alone) -> None:
    memory.compared = 0
    same(drain(Decoder(Recorder(lane, 16, memory)), requests[::-1]), alone, memory)


def test_samples_fork_one_prefill(lane, memory, requests, alone) -> None:
    memory.compared = 0
    request = ask(requests[3].id, requests[3].prompt.ids, max_tokens=LENGTH, ignore_eos=True, logprobs=2, n=3)
    recorder = Recorder(lane, 4, memory)
    found = drain(Decoder(recorder), [request])
    assert len(found) == 3
    assert recorder.fed < 2 * SIZES[3] + 3 * LENGTH, "the prompt was read more than once"
    same({key: found[key] for key in found if key[1] == 0}, alone, memory, 0)
    again = drain(Decoder(Recorder(lane, 1, memory)), [request])  # one slot: nobody is there to fork from
    assert again == found
    assert not memory.conflicts


def test_neighbours_cancelled(lane, memory, requests, alone) -> None:
    memory.compared = 0
    found = drain(Decoder(Recorder(lane, 16, memory), chunk=64), requests, {2: "r", 4: "rrr", 5: "rrrrr"})
    assert {key[0] for key, outcome in found.items() if outcome.reason == "cancelled"} == {"r", "rrr", "rrrrr"}
    same({key: outcome for key, outcome in found.items() if outcome.reason != "cancelled"}, alone, memory)


@pytest.mark.parametrize("cut", [1, 4, LENGTH - 1])
def test_resume(lane, memory, requests, alone, cut: int) -> None:
    memory.compared = 0
    resumed = [
        ask(r.id, r.prompt.ids, max_tokens=LENGTH, ignore_eos=True, logprobs=2, resume=(alone[r.id, 0].tokens[:cut],))
        for r in requests[:3]
    ]
    found = drain(Decoder(Recorder(lane, 4, memory)), resumed)
    assert all(outcome.stats.replay_mismatches == 0 for outcome in found.values())
    same(found, alone, memory)


def test_chain_drafts(lane, memory, requests, alone) -> None:
    memory.compared = 0
    truth = {request: outcome.tokens for (request, _), outcome in alone.items()}
    with registry.guests():
        registry.register("drafters", name="oracle")(Oracle)
        drafted = [
            ask(r.id, r.prompt.ids, max_tokens=LENGTH, ignore_eos=True, logprobs=2, drafter=Card("oracle"))
            for r in requests
        ]
        for slots in (16, 1):
            loop = Decoder(Recorder(lane, slots, memory), given={("drafters", "oracle"): Oracle(truth)})
            found = drain(loop, drafted[: 3 if slots == 1 else None])
            assert sum(outcome.stats.accepted for outcome in found.values()) > LENGTH
            assert all(outcome.stats.draft_failures == 0 for outcome in found.values())
            assert any(outcome.stats.accepted < outcome.stats.drafted for outcome in found.values())
            same(found, alone, memory)


def test_much_longer_mates(lane, memory, requests, alone) -> None:
    """Short rows decode beside rows that cross 128, 256 and 512 keys, in one product and in several."""
    memory.compared = 0
    make = random.Random(3)
    long = [
        ask(f"long{n}", [make.randrange(100, 40_000) for _ in range(n)], max_tokens=LENGTH + 2, ignore_eos=True)
        for n in (125, 253, 507)
    ]
    found = drain(Decoder(Recorder(lane, 8, memory), chunk=2048), [*long, *requests[:3], requests[4]])
    same({key: outcome for key, outcome in found.items() if key in alone}, alone, memory)
    memory.compared = 0
    again = drain(Decoder(Recorder(lane, 1, memory), chunk=48), [long[1]])
    same(again, found, memory)


@pytest.mark.parametrize("twin", sorted(set(TWINS) - {"scattered paths"}))
def test_the_recorder_sees_a_broken_twin(lane, requests, monkeypatch, twin: str) -> None:
    """The same scenario passes unbroken."""
    text = [*requests[4].prompt.ids, *requests[1].prompt.ids]
    row = ask("row", text, max_tokens=6, ignore_eos=True)
    mate = ask("mate", [*text, *text][:250], max_tokens=8, ignore_eos=True)
    for broken in (False, True):
        if broken:
            TWINS[twin](monkeypatch)
        memory = Memory()
        truth = drain(Decoder(Recorder(lane, 1, memory)), [row])
        replay = ask("row", text, max_tokens=6, ignore_eos=True, resume=(truth["row", 0].tokens,))
        drain(Decoder(Recorder(lane, 2, memory)), [mate, row, replay])
        assert memory.compared >= 6
        assert bool(memory.conflicts) == broken


def test_bfloat16_of_a_tiny_model(tiny_folder: Callable[..., Path]) -> None:
    lane = TorchLane(tiny_folder(LlamaConfig(**GROUPED), torch.bfloat16), dtype="bfloat16", slots=4, context=128)
    memory = Memory()
    rows = [ask("x" * (i + 1), range(20, 20 + n), max_tokens=20, ignore_eos=True) for i, n in enumerate((5, 17, 60))]
    truth = {key: outcome for row in rows for key, outcome in drain(Decoder(Recorder(lane, 1, memory)), [row]).items()}
    for slots, chunk in ((4, 512), (3, 16), (1, 7)):
        memory.compared = 0
        same(drain(Decoder(Recorder(lane, slots, memory), chunk=chunk), rows[::-1]), truth, memory, 60)


@pytest.mark.slow
def test_bfloat16(smollm, root, requests, alone) -> None:
    """A few tokens only: on processors without bfloat16 products a step costs seven of float32."""
    engine = TorchEngine(smollm, dtype="bfloat16", slots=4, max_length=512)
    assert engine.promise == "bitwise"
    memory = Memory()
    short = [ask(r.id, r.prompt.ids, max_tokens=5, ignore_eos=True) for r in requests[:3]]
    truth = drain(Decoder(Recorder(engine.lane, 1, memory)), short)
    for slots, chunk in ((4, 512), (2, 16)):
        memory.compared = 0
        same(drain(Decoder(Recorder(engine.lane, slots, memory), chunk=chunk), short[::-1]), truth, memory, 5)


def test_one_and_two_threads(lane, memory, requests, alone) -> None:
    memory.compared = 0
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        found = drain(Decoder(Recorder(lane, 4, memory)), requests[1:3])
    finally:
        torch.set_num_threads(before)
    same(found, alone, memory)
