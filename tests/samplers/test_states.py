"""State traces, not only texts: resumed from output ids alone at every cut, in any batch, drafted or not."""

from __future__ import annotations

import dataclasses

import pytest

from raydecode import registry
from raydecode.conformance.drive import Run, drive
from raydecode.conformance.options import option_sets
from raydecode.conformance.recorders import recorded
from raydecode.engine import walk
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods import visiting

STATEFUL = [method.name for method in registry.cards("samplers") if method.factory().columns]
HISTORY = [method.name for method in registry.cards("samplers") if method.needs.history]
PROMPT = Ids((0, 1, 2))


def _request(chain: tuple[Card, ...], **fields) -> Request:
    return Request("s", "s", PROMPT, DecodingSpec(max_tokens=16, seed=8, sampler=chain, ignore_eos=True, **fields))


def _card(name: str) -> Card:
    return Card(name, option_sets(registry.get("samplers", name))[0])


def _traced(request: Request) -> tuple[Run, dict]:
    given, traces = recorded()
    return drive(ToyEngine(slots=3, given=given), [request]), traces()


CHAINS = {
    **{name: (_card(name),) for name in (*STATEFUL, *HISTORY, "xtc")},
    "a warm mirostat": (Card("temperature", {"value": 1.7}), _card("mirostat1")),
    "two of them": (_card("mirostat2"), Card("mirostat1", {"tau": 0.7, "eta": 0.4})),
    "history, then state": (
        _card("dry"),
        Card("no_repeat_ngram", {"n": 4}),
        Card("mirostat2", {"tau": 1.0, "eta": 0.9}),
    ),
}


def test_mirostat_is_among_them():
    assert {"mirostat1", "mirostat2"} <= set(STATEFUL)
    assert {"dry", "no_repeat_ngram"} <= set(HISTORY)


def _resumed(name: str) -> None:
    plain = _request(CHAINS[name])
    whole, states = _traced(plain)
    ((row, outcome),) = whole.outcomes.items()
    for cut in range(1, len(outcome.tokens) + 1):
        run, again = _traced(dataclasses.replace(plain, resume=(outcome.tokens[:cut],)))
        assert run.outcomes[row] == outcome, cut
        assert not run.outcomes[row].stats.replay_mismatches
        assert again == states, f"cut at {cut}: the states are not those of the uninterrupted row"


@pytest.mark.parametrize("name", CHAINS)
def test_resume_rebuilds_every_state(name):
    _resumed(name)


@pytest.mark.parametrize("name", ["two of them", "history, then state"])
def test_drafts_leave_the_states_alone(name):
    with visiting(honest_only=True):
        plain, drafted = (_traced(_request(CHAINS[name], drafter=d, n=3)) for d in (None, Card("recycling")))
    assert plain[1] == drafted[1]
    assert plain[0].difference(drafted[0]) is None


def test_a_resume_that_reopens_states_is_caught(monkeypatch):
    """Twin: replayed tokens are kept, but not observed."""
    inside = walk.chain.observe

    def only_new(observations, rows, token_R):
        if all(row.t >= len(row.replay) for row in rows):
            inside(observations, rows, token_R)

    monkeypatch.setattr(walk.chain, "observe", only_new)
    with pytest.raises(AssertionError):
        _resumed("mirostat2")
