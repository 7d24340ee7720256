"""Whatever a drafter does, texts and states are those of plain decoding; and engines that cheat are caught."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from raydecode import registry
from raydecode.conformance import Violation, drafters, engines, workload
from raydecode.conformance.drive import drive
from raydecode.conformance.options import option_sets
from raydecode.conformance.recorders import recorded
from raydecode.engine import loop, walk
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods import cheats, visiting
from tests.methods import drafters as own

NAMES = [
    "recycling", "drafting", "constant", "always_eos", "maximal", "brimful", "boastful", "unopened", "random_paths",
    "hostile", "fewer_trees", "blind", "closed", "wishful", "bad_wishes", "ghostwriter",
]  # fmt: skip
OURS = [method.name for method in registry.cards("drafters") if not hasattr(method.factory, "among")]
"""Those of the product that draft themselves."""


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
    assert all(one.drafting["closed"].failures == one.draft_failures for one in stats)


def test_failures_are_counted_by_drafter():
    """Raising when opened, asked or told, and what is no tree: each is its drafter's, and nobody else's."""
    for name in ("unopened", "fewer_trees", "hostile", "blind", "wishful", "bad_wishes"):
        run = drive(ToyEngine(), workload.requests(Card(name), n=1, max_tokens=12))
        stats = [one.stats for one in run.outcomes.values()]
        assert sum(one.draft_failures for one in stats) > 0, name
        for one in stats:
            failures = {drafter: each.failures for drafter, each in one.drafting.items() if each.failures}
            assert failures == ({name: one.draft_failures} if one.draft_failures else {})


# ------------------------------------------------------------------------------------ rows beside adversaries, and ours
def card(name):
    return Card(name, option_sets(registry.get("drafters", name))[0])


def every():
    return [card(name) for name in (*NAMES, *OURS)]


def mixed(requests):
    """Every row another drafter."""
    cards = every()
    return [
        dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, drafter=cards[i % len(cards)]))
        for i, r in enumerate(requests)
    ]


def test_rows_come_and_go_beside_any_drafter():
    some = workload.requests(n=1, max_tokens=10)[: len(NAMES) + len(OURS)]
    engines.text_ignores_the_batch(ToyEngine, mixed(some)[::3], ({"slots": 5, "chunk": 2}, {"slots": 32}))
    engines.cancel_frees_at_once(ToyEngine, mixed(some)[::2], after=(1,))


def test_short_memory_beside_any_drafter():
    """Rows give way and come back; drafters and their models give way first."""
    spec = DecodingSpec(max_tokens=20, seed=5, ignore_eos=True)
    asked = [Request(str(i), str(i), Ids((i % 4, 1, 2, i % 3, 0)), spec) for i in range(len(every()))]
    plain, short = drive(ToyEngine(), asked), drive(ToyEngine(slots=8, context=32, tokens=72), mixed(asked))
    assert plain.difference(short) is None
    assert sum(one.stats.preempted for one in short.outcomes.values()) > 0


def test_any_drafter_goes_on_from_output_ids():
    cards = every()
    chain = (Card("temperature", {"value": 1.3}), Card("mirostat2", {"tau": 1.0}))
    spec = DecodingSpec(max_tokens=len(cards), seed=3, sampler=chain, ignore_eos=True)
    engines.resume_goes_on(ToyEngine, Request("r", "r", Ids((0, 1, 2)), spec), cards)


# ------------------------------------------------------------------------- engines that cheat must fail the same laws
def drafted(name):
    """Every chain without a monitor, every monitor without a chain."""
    some = workload.requests(card(name) if name else None, n=1, max_tokens=24)
    return [r for r in some if not (r.decoding.monitors and r.decoding.sampler)]


def traced(name):
    given, traces = recorded()
    run = drive(ToyEngine(given=given), drafted(name))
    return run, traces()


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_would_show_a_verifier_that_accepts(name, monkeypatch):
    plain = drive(ToyEngine(), drafted(None))
    assert plain.difference(drive(ToyEngine(), drafted(name))) is None
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.accepting, take=walk._take))
    assert plain.difference(drive(ToyEngine(), drafted(name))) is not None


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_would_show_a_late_observer(name, observe_late):
    assert traced(None)[1] != traced(name)[1]


@pytest.mark.parametrize("name", OURS)
def test_each_of_ours_would_show_a_monitor_that_sees_drafts(name, monkeypatch):
    plain = drive(ToyEngine(), drafted(None))
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.telling, take=walk._take))
    assert plain.difference(drive(ToyEngine(), drafted(name))) is not None


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
