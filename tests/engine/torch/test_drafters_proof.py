"""The law of drafters on a real model, in pieces of minutes: 100 questions of Spec-Bench, 128 tokens each, five chains.

Token for token, report for report, every registered drafter's rows are those of plain decoding: one row at a time, and
eight at once, which progress as unevenly as their drafts are kept. A piece is two questions under every chain. Plain
texts are made without any draft, in batches of 16, once per session (that they do not depend on the batch is the
engine's own law, tested elsewhere). `compile: true` where there is a compiler: the law is the same, the pieces shorter.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from raydecode import models, registry
from raydecode.conformance.drive import Run, drive
from raydecode.conformance.options import option_sets
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.torch.native import COMPILERS
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.engine.torch.recorder import Decoder
from tests.methods import visiting

pytestmark = [pytest.mark.slow, pytest.mark.real_model]

QUESTIONS, PIECES, LENGTH, LONGEST = 100, 50, 128, 400
SIZES = {"nodes": 5}
"""Trees that branch and do not make a piece last minutes. `prompt`, as the first example says: on."""
CHAINS = {
    "greedy": (Card("greedy"),),
    "temperature": (Card("temperature", {"value": 1.0}),),
    "top-p": (Card("temperature", {"value": 1.0}), Card("top_p", {"p": 0.9})),
    "mirostat": (Card("mirostat2", {"tau": 4.0}),),
    "penalty": (Card("repetition_penalty", {"value": 1.3}), Card("temperature", {"value": 0.8})),
}
NAMES = [method.name for method in registry.cards("drafters")]
Prompts = list[list[int]]
ADVERSARIES = ("constant", "always_eos", "maximal", "random_paths", "hostile", "brimful", "blind", "ghostwriter")


@pytest.fixture(scope="module")
def questions(smollm: Path, shared: Path) -> Prompts:
    path = shared / "data/spec_bench/question.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    vocabulary = models.Vocabulary.of(smollm)
    texts = [json.loads(line)["turns"][0] for line in path.read_text(encoding="utf-8").splitlines()]
    ids = [vocabulary.render_chat([{"role": "user", "content": text}]) for text in texts]
    ids = [one for one in ids if len(one) <= LONGEST]
    assert len(ids) >= QUESTIONS
    return [ids[i * len(ids) // QUESTIONS] for i in range(QUESTIONS)]


@pytest.fixture(scope="module")
def fast(smollm: Path) -> TorchLane:
    compiled = any(map(shutil.which, COMPILERS))
    return TorchLane(smollm, dtype="float32", slots=1, context=LONGEST + LENGTH + 16, compiled=compiled)


@pytest.fixture(scope="module")
def plain(fast: TorchLane, questions: Prompts) -> Callable[[int], Run]:
    """The piece's rows without a draft."""
    known: dict[int, Run] = {}

    def of(piece: int) -> Run:
        if piece not in known:
            known[piece] = drive(loop(fast, 16), requests(questions[piece::PIECES], None, LENGTH))
        assert all(one.error is None for one in known[piece].outcomes.values())
        return known[piece]

    return of


def loop(lane: TorchLane, slots: int) -> Decoder:
    """The model that drafts (named as in the option's example) is the same one, with a cache of its own."""
    own, twin = copy.copy(lane), copy.copy(lane)
    for one in (own, twin):
        one.slots, one.cache = slots, Cache(slots, lane.context, (slots + 4) * lane.context, 4 * lane.context)
    return Decoder(own, lanes={"toy": twin})


def requests(prompts: Sequence[Sequence[int]], drafter: Card | None, length: int) -> list[Request]:
    specs = {
        name: DecodingSpec(max_tokens=length, seed=11, sampler=chain, drafter=drafter, ignore_eos=True)
        for name, chain in CHAINS.items()
    }
    return [
        Request(f"{i} {name}", f"{i} {name}", Ids(tuple(ids)), spec)
        for i, ids in enumerate(prompts)
        for name, spec in specs.items()
    ]


def first(name: str, **options: object) -> Card:
    method = registry.get("drafters", name)
    return method.parse(Card(name, {**option_sets(method)[0], **options}), "drafter")


def with_drafter(request: Request, drafter: Card) -> Request:
    return dataclasses.replace(request, decoding=dataclasses.replace(request.decoding, drafter=drafter))


def sized(name: str, sizes: dict[str, int]) -> Card:
    known = registry.get("drafters", name).schema().get("properties", {})
    return first(name, **{option: size for option, size in sizes.items() if option in known})


def compare(name: str, found: Run, truth: Run) -> None:
    """No difference, and the drafter did its work; one that chooses may choose none."""
    assert truth.difference(found) is None
    stats = [one.stats for one in found.outcomes.values()]
    assert sum(one.draft_failures for one in stats) == 0
    tried = sum(one.accepted for one in stats) > 0
    assert tried or hasattr(registry.get("drafters", name).factory, "among"), "nothing was accepted"


@pytest.mark.parametrize("piece", range(PIECES))
@pytest.mark.parametrize("name", NAMES)
def test_eight_rows_at_once(name: str, piece: int, fast: TorchLane, questions: Prompts, plain: Callable) -> None:
    found = drive(loop(fast, 8), requests(questions[piece::PIECES], sized(name, SIZES), LENGTH))
    compare(name, found, plain(piece))


@pytest.mark.parametrize("piece", range(PIECES))
@pytest.mark.parametrize("name", NAMES)
def test_one_row_at_a_time(name: str, piece: int, fast: TorchLane, questions: Prompts, plain: Callable) -> None:
    found = drive(loop(fast, 1), requests(questions[piece::PIECES], sized(name, SIZES), LENGTH))
    compare(name, found, plain(piece))


def test_adversaries_beside_each_other(fast: TorchLane, questions: Prompts) -> None:
    """Every row another one; 16 tokens."""
    asked = requests(questions[:5], None, 16)
    truth = drive(loop(fast, 16), asked)
    with visiting():
        cards = [first(name) for name in (*ADVERSARIES, *NAMES)]
        for shift in range(0, len(cards), 5):
            mixed = [with_drafter(request, cards[(i + shift) % len(cards)]) for i, request in enumerate(asked)]
            assert truth.difference(drive(loop(fast, 8), mixed)) is None


# ------------------------------------------------------------------------------------------------------- bfloat16
FEW = {"tokens": 4, "nodes": 4, "depth": 2, "longest": 3}
"""Small drafts: without bfloat16 products every token of a call costs seven of float32."""


@pytest.fixture(scope="module")
def half(smollm: Path) -> TorchLane:
    return TorchLane(smollm, dtype="bfloat16", slots=1, context=128)


@pytest.fixture(scope="module")
def plain_half(half: TorchLane, questions: Prompts) -> Run:
    return drive(loop(half, 3), reduced(questions, None))


def reduced(questions: Prompts, drafter: Card | None) -> list[Request]:
    """Three beginnings, one chain each, 12 tokens."""
    prompts = [ids[:24] for ids in questions[:3]]
    return requests(prompts, drafter, 12)[:: len(CHAINS) + 1]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_reduced(name: str, half: TorchLane, questions: Prompts, plain_half: Run) -> None:
    found = drive(loop(half, 3), reduced(questions, sized(name, FEW)))
    assert plain_half.difference(found) is None
