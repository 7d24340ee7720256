"""A request that changes engines between two steps gives its reader what one engine would have given."""

import dataclasses

import pytest

from actors.delivered import Delivered
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent, StepEvent, TokenEvent
from raydecode.request import Card, DecodingSpec, Request, Text
from tests.actors.told import told

SPECS = {
    "sampled": {},
    "stops": {"stop": (b"ab)", b"ba")},
    "three samples": {"n": 3},
    "drafted": {"drafter": Card("recycling"), "n": 2},
    "logprobs": {"logprobs": 2, "sampler": (Card("mirostat2"),)},
}


def request(**spec):
    return Request("r", "row", Text("ab"), DecodingSpec(**{"max_tokens": 14, "seed": 5, "ignore_eos": True, **spec}))


def run(asked, cuts=(), make=lambda: ToyEngine(stream=True)):
    """What a reader gets when the engine is lost after each of these numbers of steps."""
    had, seen, cuts = Delivered(asked), [], list(cuts)
    while not had.done:
        engine = make()
        engine.submit(had.begin())
        steps = cuts.pop(0) if cuts else None
        while engine.busy and steps != 0:
            seen += had.take(engine.step())
            steps = None if steps is None else steps - 1
        assert had.runs < 30
    return had, seen


@pytest.mark.parametrize("name", SPECS)
def test_wherever_it_changes_the_reader_does_not_notice(name):
    asked = request(**SPECS[name])
    _, undisturbed = run(asked)
    truth = told(undisturbed)
    assert all(text == fold[-1].text for fold, text in truth.values())
    most = 0
    for cuts in [(1,), (2, 3), (3, 1, 1), (5,), (1, 1, 1, 1, 1), (0, 0, 4)]:
        had, seen = run(asked, cuts)
        assert told(seen) == truth, cuts
        most = max(most, had.runs)
        assert had.runs <= len(cuts) + 1
    assert most > 2


def test_steps_come_once_and_in_order():
    _, seen = run(request(drafter=Card("recycling")), (2, 2))
    starts = [event.t0 for event in seen if isinstance(event, StepEvent)]
    assert starts == sorted(set(starts))


class Unresumable(ToyEngine):
    """Says what vLLM says of rows that its own generator draws."""

    def submit(self, request):
        if any(request.resume):
            request = dataclasses.replace(request, resume=((0,) * 999,) * request.decoding.n)
        super().submit(request)


@pytest.mark.parametrize("name", ["sampled", "stops", "three samples"])
def test_what_cannot_be_resumed_begins_again_and_is_told_on(name):
    asked = request(**SPECS[name])
    _, undisturbed = run(asked)
    had, seen = run(asked, (4,), lambda: Unresumable(stream=True))
    assert told(seen) == told(undisturbed)
    assert had.runs == 3  # lost, refused, from the start


class Fickle(Unresumable):
    """Draws otherwise in every engine."""

    made = 0

    def submit(self, request):
        Fickle.made += 1
        super().submit(dataclasses.replace(request, noise_id=f"{Fickle.made}"))


def test_a_text_that_comes_otherwise_is_an_error_and_not_sent():
    had, seen = run(request(max_tokens=40), (6,), lambda: Fickle(stream=True))
    assert had.done
    last = seen[-1]
    assert isinstance(last, OutcomeEvent)
    assert (last.reason, last.error.kind) == ("error", "Diverged")
    assert [event.t for event in seen if isinstance(event, TokenEvent)] == list(range(len(had.ids[0])))


def test_a_request_that_came_with_ids_goes_on_from_them():
    asked = request()
    _, undisturbed = run(asked)
    tokens = [event.token for event in undisturbed if isinstance(event, TokenEvent)]
    later = dataclasses.replace(asked, resume=(tuple(tokens[:3]),))
    _, seen = run(later, (2,))
    assert [event.token for event in seen if isinstance(event, TokenEvent)] == tokens[3:]
