"""Two engines, one text: greedy decoding of the demo corpus on vLLM and on the torch engine.

float32: the same tokens, every row. bfloat16: each first difference is shown with the gap between the two candidates
in the torch engine's own logits, and must be a near-tie. Both engines round 30 layers to 8 bits of mantissa in another
order; logits of this model lie between 8 and 32, where one bfloat16 step is 1/16 to 1/8, so NEAR is a few steps.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from raydecode.contracts import Engine
from raydecode.engine.vllm import VllmEngine, available
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Messages, Request

pytestmark = pytest.mark.real_model

PROMPTS, TOKENS, LENGTH, SLOTS = 24, 24, 384, 8
HALF_PROMPTS = 12
"""Fewer in bfloat16: 7 times slower than float32 on a processor without its instructions."""

NEAR = 0.5
"""nats"""


@dataclass(frozen=True)
class Decoded:
    """A row's tokens, and at each position the likeliest tokens with their log-probabilities."""

    tokens: tuple[int, ...]
    top: tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Difference:
    """Where two rows part: t the output index, gap [nats] between both candidates in the first engine's logits."""

    id: str
    t: int
    gap: float


def requests(root: Path, count: int) -> Iterator[Request]:
    spec = DecodingSpec(max_tokens=TOKENS, sampler=(Card("greedy"),), logprobs=5)
    lines = (root / "configs/data/quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines[:count]):
        prompt = Messages(({"role": "user", "content": record["prompt"]},))
        yield Request(record["id"], record["id"], prompt, spec, overflow="cut_left")


def decode(engine: Engine, asked: list[Request]) -> dict[str, Decoded]:
    for request in asked:
        engine.submit(request)
    rows: dict[str, Decoded] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, OutcomeEvent):
                assert event.error is None, event.error
                rows[event.row.request] = Decoded(event.tokens, tuple(dict(top) for _, top in event.logprobs))
    return rows


def decode_on_vllm(folder: Path, dtype: str, asked: list[Request]) -> dict[str, Decoded]:
    """In a process of its own: vLLM allows few engines per process."""
    engine = VllmEngine(folder, dtype=dtype, slots=SLOTS, max_length=LENGTH)
    try:
        return decode(engine, asked)
    finally:
        engine.close()


def differences(ours: dict[str, Decoded], theirs: dict[str, Decoded]) -> list[Difference]:
    found = []
    for id, row in ours.items():
        other = theirs[id]
        t = next((t for t, (a, b) in enumerate(zip(row.tokens, other.tokens, strict=False)) if a != b), None)
        if t is not None:
            gap = row.top[t][row.tokens[t]] - row.top[t].get(other.tokens[t], float("-inf"))
            found.append(Difference(id, t, gap))
        else:
            assert len(row.tokens) == len(other.tokens)
    return found


@pytest.mark.slow
def test_float32_tokens_are_identical(vllm_engine: VllmEngine, smollm: Path, root: Path) -> None:
    from raydecode.engine.torch import TorchEngine

    asked = list(requests(root, PROMPTS))
    ours = decode(TorchEngine(smollm, dtype="float32", slots=SLOTS, max_length=LENGTH), asked)
    theirs = decode(vllm_engine, asked)
    assert len(ours) == len(theirs) == PROMPTS
    assert differences(ours, theirs) == []
    worst = max(
        abs(logp - there[token])
        for id, row in ours.items()
        for here, there in zip(row.top, theirs[id].top, strict=True)
        for token, logp in list(here.items())[:2]
    )
    assert worst < 0.01


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bfloat16_parts_at_near_ties_only(smollm: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raydecode.engine.torch import TorchEngine

    reason = available()
    if reason:
        pytest.skip(reason)
    asked = list(requests(root, HALF_PROMPTS))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(decode_on_vllm, smollm, "bfloat16", asked).result()
    ours = decode(TorchEngine(smollm, dtype="bfloat16", slots=SLOTS, max_length=LENGTH), asked)
    found = differences(ours, theirs)
    with capsys.disabled():
        print(f"\nbfloat16, {len(ours)} rows: {len(ours) - len(found)} identical")
        for difference in found:
            print(f"  {difference.id}: parts at token {difference.t}, gap {difference.gap:.3f} nats")
    assert all(difference.gap <= NEAR for difference in found), found
