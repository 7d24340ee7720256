"""Whatever a drafter does, texts and states are those of plain decoding; and engines that cheat are caught."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from raydecode import registry
from raydecode.conformance import Violation, drafters, workload
from raydecode.conformance.drive import drive
from raydecode.conformance.recorders import recorded
from raydecode.engine import loop, walk
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card
from tests.methods import cheats, visiting
from tests.methods import drafters as own

NAMES = [
    "recycling", "drafting", "constant", "always_eos", "maximal", "random_paths", "hostile", "fewer_trees", "blind",
    "closed", "wishful", "bad_wishes", "ghostwriter",
]  # fmt: skip


@pytest.fixture(autouse=True)
def guests():
    with visiting(honest_only=True):
        for cls in own.TWINS:
            registry.register("drafters")(cls)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_text_and_states_are_plain(name):
    drafters.text_is_plain(registry.get("drafters", name))
    drafters.states_are_plain(registry.get("drafters", name))


def test_drafters_mixed_by_row_in_one_batch():
    plain = drive(ToyEngine(), workload.requests())
    mixed = [
        dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, drafter=Card(NAMES[i % len(NAMES)])))
        for i, r in enumerate(workload.requests())
    ]
    assert plain.difference(drive(ToyEngine(), mixed)) is None


def test_valid_trees_is_for_drafters_that_mean_to_help():
    drafters.trees_are_valid(registry.get("drafters", "recycling"))
    with pytest.raises(Violation, match="trees_are_valid"):
        drafters.trees_are_valid(registry.get("drafters", "hostile"))


def test_a_good_drafter_saves_forwards():
    def forwards(drafter):
        run = drive(ToyEngine(), workload.requests(drafter, max_tokens=40))
        return sum(one.stats.forwards for one in run.outcomes.values())

    assert forwards(Card("recycling")) < 0.8 * forwards(None)


def test_failures_are_counted_by_row():
    run = drive(ToyEngine(), workload.requests(Card("closed")))
    stats = [one.stats for one in run.outcomes.values()]
    stats = [one for one in stats if "none" in one.drafting and one.drafting["none"].forwards > 1]  # it was asked
    assert len(stats) > 5
    assert all(one.draft_failures > 0 and one.drafted >= one.accepted for one in stats)


# ------------------------------------------------------------------------- engines that cheat must fail the same laws
def test_an_always_accepting_verifier_is_caught(monkeypatch):
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.accepting, take=walk._take))
    with pytest.raises(Violation, match="text_is_plain"):
        drafters.text_is_plain(registry.get("drafters", "constant"))


def test_telling_monitors_of_drafts_is_caught(monkeypatch):
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.telling, take=walk._take))
    plain, told = (drive(ToyEngine(), workload.requests(drafter)) for drafter in (None, Card("recycling")))
    spied = [row for row, one in told.outcomes.items() if one.tokens != plain.outcomes[row].tokens]
    assert spied, "the spy's texts change"
    with pytest.raises(Violation, match="text_is_plain"):
        drafters.text_is_plain(registry.get("drafters", "recycling"))


@pytest.fixture
def observe_late(monkeypatch):
    """The engine that lets samplers observe at the end of the step instead of inside the walk."""
    inside, late = walk.chain.observe, []
    monkeypatch.setattr(walk.chain, "observe", lambda *call: late.append(call))

    def stepping(*call):
        walk.walk(*call)
        for seen in late:
            inside(*seen)
        late.clear()

    monkeypatch.setattr(loop, "walk", stepping)


def test_observing_after_the_walk_is_caught_by_states(observe_late):
    with pytest.raises(Violation, match="states_are_plain"):
        drafters.states_are_plain(registry.get("drafters", "recycling"))


def test_observing_after_the_walk_hides_from_texts(observe_late):
    """Why states are compared: with one chain of short rows, the late twin's texts are all right."""

    def run(drafter):
        requests = [r for r in workload.requests(drafter, n=1, max_tokens=6) if r.decoding.monitors == ()]
        return drive(ToyEngine(), requests)

    plain, late = run(None), run(Card("recycling"))
    assert plain.difference(late) is None


def test_a_method_that_loads_is_not_recorded():
    with registry.guests():
        registry.register("monitors", name="loading", loads=True)(registry.get("monitors", "brackets").factory)
        assert ("monitors", "loading") not in recorded()[0]
