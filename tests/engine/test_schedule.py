"""Slots, pages and queues: short memory, equal beginnings, rows that come and go. (On the toy lane.)"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.engine.loop import Loop
from raydecode.engine.toy import PAGE, ToyEngine, ToyLane
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from raydecode.tree import TokenTree
from tests.methods import visiting
from tests.methods.drafters import Drafting

FREE = DecodingSpec(max_tokens=12, ignore_eos=True)


class Counting(ToyLane):
    """Writes down how many tokens each forward fed."""

    def __init__(self, *size, **more) -> None:
        super().__init__(*size, **more)
        self.fed: list[int] = []

    def forward(self, chunks, needs, hooks=()):
        self.fed.append(sum(len(chunk) for chunk in chunks))
        return super().forward(chunks, needs, hooks)


class ToyLoop(Loop):
    name = "toy"


def _ask(id: str, prompt: tuple[int, ...], spec: DecodingSpec = FREE) -> Request:
    return Request(id, id, Ids(prompt), spec)


def _mixed(count: int) -> list[Request]:
    return [
        _ask(str(i), (*(1, 2, 3) * (i % 5 + 1), i % 4), dataclasses.replace(FREE, n=1 + i % 3, seed=i))
        for i in range(count)
    ]


def test_short_memory_changes_no_text():
    wide = drive(ToyEngine(slots=32, context=40), _mixed(9))
    for tokens in (40, 64, 120):
        short = drive(ToyEngine(slots=6, context=40, tokens=tokens, chunk=7), _mixed(9))
        assert short.difference(wide) is None
        if tokens < 120:
            assert sum(one.stats.preempted for one in short.outcomes.values()) > 0


def test_the_row_that_came_first_is_never_preempted():
    run = drive(ToyEngine(slots=3, context=40, tokens=40), [_ask(str(i), (1,) * 6 + (i,)) for i in range(3)])
    preempted = [run.outcomes[RowId(str(i))].stats.preempted for i in range(3)]
    assert preempted[0] == 0
    assert sum(preempted) > 0


def test_a_row_that_never_fits_is_an_error_at_once():
    engine = ToyEngine(slots=2, context=24, tokens=24)
    engine.submit(_ask("fits", (1,) * 12))
    engine.submit(_ask("never", (1,) * 13))
    (event,) = [event for event in engine.step() if isinstance(event, OutcomeEvent)]
    assert (event.row.request, event.error.kind) == ("never", "ContextOverflow")
    assert "lower max_tokens to 11" in event.error.message
    assert drive(engine, []).outcomes[RowId("fits")].reason == "length", "a prompt at exactly the limit"


def test_equal_beginnings_are_read_once():
    template = tuple((i * i) % 4 for i in range(5 * PAGE))
    rows = [_ask(str(i), (*template, i % 4, i // 4)) for i in range(8)]
    lane = Counting(8, 256)
    shared = drive(ToyLoop(lane), rows)
    assert sum(lane.fed) < len(template) + 8 * (2 + 12) + PAGE
    assert [shared.outcomes[RowId(str(i))].stats.cached_tokens for i in range(8)] == [0] + [len(template)] * 7
    assert shared.difference(drive(ToyEngine(slots=1, context=256, tokens=256), rows)) is None


def test_a_beginning_is_kept_after_its_row_and_within_bounds():
    template = (3, 2, 1) * PAGE
    lane = ToyLane(1, 256, retain=4 * PAGE)
    loop = ToyLoop(lane)
    cached = [
        drive(loop, [_ask(str(i), (*template, i % 4))]).outcomes[RowId(str(i))].stats.cached_tokens for i in range(3)
    ]
    assert cached == [0, 3 * PAGE, 3 * PAGE]
    drive(loop, [_ask(f"other{i}", (i % 4, i // 4) * 20) for i in range(12)])
    assert lane.pages.retained == 4
    after = drive(loop, [_ask("last", (*template, 0))]).outcomes[RowId("last")]
    assert after.stats.cached_tokens == 0, "used longest ago, the first to go"


def test_rows_under_interventions_share_among_themselves_only():
    lane = ToyLane(3, 64)
    for slot, salt in enumerate(("", "[clamp]")):
        lane.adopt(slot, 0, (1,) * 2 * PAGE, salt)
        lane.reserve(slot, 0, 2 * PAGE)
        lane.publish(slot, (1,) * 2 * PAGE)
    assert lane.adopt(2, 0, (1,) * 2 * PAGE, "[other]") == 0
    assert lane.adopt(2, 0, (1,) * 2 * PAGE, "[clamp]") == 2 * PAGE
    assert lane.pages.tables[2] == lane.pages.tables[1] != lane.pages.tables[0]


def test_a_draft_takes_no_rows_memory():
    class Wide(Drafting):
        def tree(self, row, budget, shared):
            return TokenTree.paths(row.pending, [(a, b, c) for a in range(3) for b in range(3) for c in range(2)])

    with visiting(), registry.guests():
        registry.register("drafters", name="wide", engines=("toy",))(Wide)
        rows = [_ask(str(i), (i,) * PAGE, dataclasses.replace(FREE, drafter=Card("wide"))) for i in range(2)]
        tight = drive(ToyEngine(slots=2, context=3 * PAGE, tokens=6 * PAGE), rows)
    assert not any(one.stats.preempted or one.stats.draft_failures for one in tight.outcomes.values())
    plain = drive(ToyEngine(slots=2), [_ask(str(i), (i,) * PAGE) for i in range(2)])
    assert {row: one.tokens for row, one in tight.outcomes.items()} == {
        row: one.tokens for row, one in plain.outcomes.items()
    }


@pytest.mark.parametrize("steps", range(4))
def test_cancel_frees_pages_before_the_next_step(steps: int):
    engine = ToyEngine(slots=4, context=64, tokens=64)
    engine.submit(_ask("gone", (1,) * 40, dataclasses.replace(FREE, n=3)))
    engine.submit(_ask("next", (2,) * 40))
    for _ in range(steps):
        engine.step()
    engine.cancel("gone")
    engine.check_integrity()
    assert engine.lane.pages.room == engine.lane.pages.count
    events = engine.step()
    assert any(isinstance(event, TokenEvent) and event.row.request == "next" for event in events)


class Traffic(RuleBasedStateMachine):
    """Requests come and go over a memory that is too small for them; every text is what it is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = ToyEngine(slots=5, context=48, tokens=88, chunk=11)
        self.asked: dict[str, Request] = {}
        self.outcomes: dict[RowId, OutcomeEvent] = {}
        self.cancelled: set[str] = set()

    @rule(
        beginning=st.integers(0, 2), length=st.integers(1, 24), tail=st.lists(st.integers(0, 3), max_size=3),
        n=st.integers(1, 3), most=st.integers(1, 14), seed=st.integers(0, 3),
    )  # fmt: skip
    def submit(self, beginning: int, length: int, tail: list[int], n: int, most: int, seed: int) -> None:
        id = str(len(self.asked))
        prompt = (*((beginning, 1, 2, 3, 0, beginning) * 4)[:length], *tail)
        self.asked[id] = _ask(id, prompt, DecodingSpec(max_tokens=most, n=n, seed=seed))
        self.engine.submit(self.asked[id])

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            for event in self.engine.step():
                if isinstance(event, OutcomeEvent):
                    assert event.row not in self.outcomes
                    self.outcomes[event.row] = event

    @rule(which=st.integers(0, 10**6))
    def cancel(self, which: int) -> None:
        if self.asked:
            id = str(which % len(self.asked))
            self.engine.cancel(id)
            self.cancelled.add(id)
            assert all(row.request != id for row in self.engine.running)

    @invariant()
    def nothing_leaks(self) -> None:
        self.engine.check_integrity()

    def teardown(self) -> None:
        while self.engine.busy:
            self.step(1)
        self.engine.check_integrity()
        assert self.engine.lane.pages.room == self.engine.lane.pages.count
        for id, request in self.asked.items():
            alone = drive(ToyEngine(slots=1, context=48, tokens=48), [request]).outcomes
            for row, truth in alone.items():
                found = self.outcomes[row]
                if found.reason == "cancelled":
                    assert id in self.cancelled
                    assert truth.tokens[: len(found.tokens)] == found.tokens
                else:
                    assert found == truth


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
