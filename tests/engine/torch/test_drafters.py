"""Every registered drafter, and the adversaries, on a tiny random transformer: token for token the text without one."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from raydecode import registry
from raydecode.conformance.drafters import CHEAP
from raydecode.conformance.drive import drive
from raydecode.conformance.options import option_sets
from raydecode.engine import walk
from raydecode.engine.cost import CostCurve
from raydecode.engine.loop import Loop
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.engine.torch.test_families import FAMILIES
from tests.methods import cheats, visiting

CHAINS = {
    "narrow": (Card("logit_bias", {"bias": {20: 100.0, 21: 100.0, 22: 100.0}}),),
    "greedy": (Card("greedy"),),
    "plain": (),
    "top-p": (Card("temperature", {"value": 0.7}), Card("top_p", {"p": 0.9})),
    "mirostat": (Card("mirostat2", {"tau": 3.0}),),
    "penalty": (Card("repetition_penalty", {"value": 1.3}), Card("greedy")),
}
ADVERSARIES = (
    "constant", "always_eos", "maximal", "brimful", "boastful", "unopened", "random_paths", "hostile", "fewer_trees",
    "blind", "bad_wishes", "ghostwriter",
)  # fmt: skip


class Loops(Loop):
    name = "torch"


@pytest.fixture(scope="module")
def small(tiny_folder: Callable[..., Path]) -> TorchLane:
    return TorchLane(tiny_folder(FAMILIES["llama"]()), dtype="float32", slots=5, context=160)


def loops(lane: TorchLane, curve: CostCurve | None = CHEAP) -> Loops:
    """The model that drafts, named as in the option's example, is the same one: its lane has a cache of its own.

    curve: None: measured, and then what `auto` drafts is the clock's matter
    """
    twin = copy.copy(lane)
    twin.cache = Cache(lane.slots, lane.context)
    return Loops(lane, chunk=24, lanes={"toy": twin}, curve=curve)


def requests(drafter: Card | None, length: int = 24) -> list[Request]:
    """More rows than slots, prompts and limits of different lengths: progress is ragged."""
    out = []
    for i, (name, chain) in enumerate(CHAINS.items()):
        prompt = [20 + (7 * i + j * j) % 90 for j in range(3 + 11 * i)] + [30, 31, 32, 33, 30, 31]
        spec = DecodingSpec(
            max_tokens=length - 3 * i, seed=5, n=1 + i % 2, sampler=chain, drafter=drafter, logprobs=1,
            ignore_eos=i % 2 == 0,
        )  # fmt: skip
        out.append(Request(name, f"noise {i}", Ids(tuple(prompt)), spec))
    return out


@pytest.fixture(scope="module")
def plain(small: TorchLane):
    run = drive(loops(small), requests(None))
    assert all(one.error is None for one in run.outcomes.values())
    return run


@pytest.mark.parametrize("name", [method.name for method in registry.cards("drafters")])
def test_no_token_differs(name: str, small: TorchLane, plain) -> None:
    accepted = 0
    for options in option_sets(registry.get("drafters", name))[:2]:
        run = drive(loops(small), requests(Card(name, options)))
        assert plain.difference(run) is None
        assert sum(one.stats.draft_failures for one in run.outcomes.values()) == 0
        accepted += sum(one.stats.accepted for one in run.outcomes.values())
    assert accepted > 0, "nothing was accepted, so nothing was tried"


def first(name: str) -> Card:
    return Card(name, option_sets(registry.get("drafters", name))[0])


def test_all_of_them_in_one_batch_with_adversaries(small: TorchLane, plain) -> None:
    names = [*(method.name for method in registry.cards("drafters")), *ADVERSARIES]
    with visiting():
        for shift in range(0, len(names), len(requests(None))):
            mixed = [
                dataclasses.replace(
                    r, decoding=dataclasses.replace(r.decoding, drafter=first(names[(i + shift) % len(names)]))
                )
                for i, r in enumerate(requests(None))
            ]
            assert plain.difference(drive(loops(small), mixed)) is None


def test_a_verifier_that_accepts_is_caught(small: TorchLane, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.accepting, take=walk._take))
    assert plain.difference(drive(loops(small), requests(first("ngram")))) is not None


def test_auto_measures_its_lane_once_and_texts_do_not_know_what_it_found(small: TorchLane, plain) -> None:
    """By the clock: whatever it drafted, nothing differs. The process measures once for both engines."""
    auto = registry.get("drafters", "auto").parse(Card("auto"), "drafter")
    first, second = loops(small, None), loops(small, None)
    for engine in (first, second):
        run = drive(engine, requests(auto))
        assert plain.difference(run) is None
        assert sum(one.stats.draft_failures for one in run.outcomes.values()) == 0
        engine.check_integrity()
    assert first.choice.curve is not second.choice.curve, "corrections are each engine's own"
    assert list(first.choice.curve.seconds_N) == list(second.choice.curve.seconds_N)
    assert "a call of one row costs" in str(first.drafting)
