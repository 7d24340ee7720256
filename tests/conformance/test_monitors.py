"""Honest monitors obey every law; each twin fails the one that it breaks."""

from __future__ import annotations

import threading

import pytest

from raydecode import registry
from raydecode.conformance import Violation, monitors
from raydecode.conformance.drive import drive
from raydecode.engine import walk
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import monitors as own
from tests.methods import visiting

HONEST = ["slow_members", "brackets", "entropy_stop", "bad_word", "bias_a", "hinting", "source_spy"]
BREAKS = {
    "mutating": monitors.fold,
    "nosy": monitors.questions_change_nothing,
    "gossiping": monitors.rows_are_isolated,
    "calls_itself_exact": monitors.exact_means_exact,
}


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


@pytest.mark.parametrize("law", monitors.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", HONEST)
def test_law(name, law):
    law(registry.get("monitors", name))


@pytest.mark.parametrize("name", BREAKS)
def test_twin_fails_its_law(name):
    with pytest.raises(Violation, match=f"monitors/{name} breaks '{BREAKS[name].__name__}'"):
        BREAKS[name](registry.get("monitors", name))


def test_one_list_for_all_states_breaks_forks_too():
    with pytest.raises(Violation, match="forks_are_free"):
        monitors.forks_are_free(registry.get("monitors", "mutating"))


def test_a_wrong_price_is_caught(monkeypatch):
    honest = walk.masked
    monkeypatch.setattr(walk, "masked", lambda raw, rows, *rest: (honest(raw, rows, *rest)[0], [0.0] * len(rows)))
    with pytest.raises(Violation, match="distortion_is_accounted"):
        monitors.distortion_is_accounted(registry.get("monitors", "brackets"))


# ------------------------------------------------------------------------------------------------------- byte truth
TEXT = "xéba b()y".encode()
CUTS = ([], [1, 2, 3], [4], [3, 4, 5, 6], list(range(1, len(TEXT))), [2, 7])


@pytest.mark.parametrize("word", ["ba", "éb", "()y", "zz"])
def test_words_are_found_wherever_tokens_end(word):
    monitors.byte_truth(registry.get("monitors", "bad_word"), {"word": word}, TEXT, CUTS)


def test_looking_at_token_ends_only_is_caught():
    with pytest.raises(Violation, match="byte_truth"):
        monitors.byte_truth(registry.get("monitors", "word_at_token_end"), {"word": "ba"}, TEXT, CUTS)


# ------------------------------------------------------------------------------------------------------ parked rows
def _requests(drafter=None):
    slow = DecodingSpec(max_tokens=16, seed=2, n=2, monitors=(Card("slow_members"), Card("brackets")), drafter=drafter)
    free = DecodingSpec(max_tokens=16, seed=2, drafter=drafter)
    return [Request("slow", "slow", Ids((0, 1)), slow), Request("free", "free", Ids((0, 1)), free)]


@pytest.mark.parametrize("drafter", [None, Card("recycling"), Card("constant")])
def test_a_parked_row_ends_as_with_an_instant_answer(drafter):
    class Instant(ToyEngine):
        """Every question is answered before anybody looks again."""

        def step(self):
            events = super().step()
            while self.running and not self.wait(1.0):
                pass
            return events

    instant = drive(Instant(services={"members": own.members}), _requests())
    gate = threading.Event()

    def gated(tokens):
        assert gate.wait(30)
        return own.members(tokens)

    engine = ToyEngine(services={"members": gated})
    for request in _requests(drafter):
        engine.submit(request)
    events = []
    for _ in range(40):
        events += engine.step()
        engine.check_integrity()
    ended = {event.row.request for event in events if isinstance(event, OutcomeEvent)}
    assert ended == {"free"}, "rows that ask nothing go on while another waits"
    assert not engine.wait(0.0), "all rows are parked"
    gate.set()
    while engine.busy:
        events += engine.step()
        engine.wait(0.05)
    outcomes = {event.row: event for event in events if isinstance(event, OutcomeEvent)}
    assert outcomes == instant.outcomes
    assert outcomes[RowId("slow")].reports[0] == list(outcomes[RowId("slow")].tokens)


def test_a_service_that_raises_ends_its_row():
    def broken(tokens):
        raise OSError("the service is gone")

    run = drive(ToyEngine(services={"members": broken}), _requests())
    assert run.outcomes[RowId("free")].error is None
    slow = run.outcomes[RowId("slow")]
    assert (slow.error.stage, slow.error.kind, slow.error.message) == ("monitor", "OSError", "the service is gone")


def test_an_unknown_service_names_the_known_ones():
    run = drive(ToyEngine(services={"other": own.members}), _requests())
    assert run.outcomes[RowId("slow")].error.message == "no service 'members'; given: other"


def test_a_parked_row_can_be_cancelled():
    gate = threading.Event()
    engine = ToyEngine(slots=2, services={"members": lambda tokens: gate.wait(30) and own.members(tokens)})
    engine.submit(_requests()[0])
    for _ in range(30):
        engine.step()
    engine.cancel("slow")
    assert not engine.running
    outcomes = [event for event in engine.step() if isinstance(event, OutcomeEvent)]
    gate.set()
    assert [one.reason for one in outcomes] == ["cancelled"] * 2
    assert not engine.busy
