"""The step: admission, shared prefill, chunks, deadlines, cancel, streams. (That texts are equal is a law.)"""

from __future__ import annotations

import dataclasses

import pytest

from raydecode.conformance.drive import drive
from raydecode.engine.loop import Loop
from raydecode.engine.toy import ToyEngine, ToyLane
from raydecode.events import OutcomeEvent, StepEvent, TextEvent, TokenEvent
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import visiting

FREE = DecodingSpec(max_tokens=6, ignore_eos=True)


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


def _request(id: str = "r", prompt: tuple[int, ...] = (0, 1, 2), spec: DecodingSpec = FREE, **fields) -> Request:
    return Request(id, id, Ids(prompt), spec, **fields)


class Counting(ToyLane):
    """Writes down how many tokens each forward fed."""

    def __init__(self, slots: int, context: int) -> None:
        super().__init__(slots, context)
        self.fed: list[int] = []

    def forward(self, chunks, needs, hooks=()):
        self.fed.append(sum(len(chunk) for chunk in chunks))
        return super().forward(chunks, needs, hooks)


class CountingLoop(Loop):
    name = "toy"


def test_samples_share_one_prefill():
    lane = Counting(slots=8, context=256)
    run = drive(CountingLoop(lane), [_request(prompt=(1,) * 100, spec=dataclasses.replace(FREE, n=8))])
    assert sum(lane.fed) == 100 + 8 * 6 - 1 - 7 + 7, "the prompt once, then one token per sample and step"
    cached = [one.stats.cached_tokens for _, one in sorted(run.outcomes.items())]
    assert cached == [0] + [99] * 7


def test_samples_that_wait_for_a_slot_fork_or_read_again():
    spec = dataclasses.replace(FREE, n=5)
    wide, narrow = (drive(ToyEngine(slots=slots), [_request(spec=spec)]) for slots in (8, 2))
    assert wide.difference(narrow) is None


def test_a_long_prompt_does_not_stall_the_others():
    engine = ToyEngine(slots=4, chunk=10)
    engine.submit(_request("long", prompt=(1,) * 200))
    engine.submit(_request("short", prompt=(1,)))
    first = [event for _ in range(6) for event in engine.step()]
    tokens = [event for event in first if isinstance(event, TokenEvent)]
    assert {event.row.request for event in tokens} <= {"short", "long"}
    ended = [event.row.request for event in first if isinstance(event, OutcomeEvent)]
    while engine.busy:
        ended += [event.row.request for event in engine.step() if isinstance(event, OutcomeEvent)]
    assert ended == ["short", "long"]


def test_the_chunk_budget_is_kept():
    lane = Counting(slots=4, context=256)
    drive(CountingLoop(lane, chunk=16), [_request(str(i), prompt=(1,) * 70) for i in range(3)])
    assert max(lane.fed) <= 16 + 3, "prompt tokens of all rows, and one token of each row that decodes"


def test_waiting_and_running_are_told():
    engine = ToyEngine(slots=2)
    for i in range(3):
        engine.submit(_request(str(i)))
    assert (engine.waiting, engine.running) == (3, ())
    engine.step()
    assert (engine.waiting, engine.running) == (1, (RowId("0"), RowId("1")))
    assert engine.busy
    assert engine.wait(0.0)


def test_a_deadline_ends_its_row_only():
    now = [0.0]
    engine = ToyEngine(clock=lambda: now[0])
    engine.submit(_request("timed", spec=dataclasses.replace(FREE, max_tokens=50, deadline_s=2.5)))
    engine.submit(_request("free", spec=dataclasses.replace(FREE, max_tokens=8)))
    outcomes = {}
    while engine.busy:
        now[0] += 1.0
        outcomes |= {event.row.request: event for event in engine.step() if isinstance(event, OutcomeEvent)}
    assert (outcomes["timed"].error.kind, outcomes["timed"].error.stage) == ("Deadline", "engine")
    assert outcomes["free"].reason == "length"
    assert outcomes["timed"].stats.total_s > 2.5


def test_the_clock_is_an_argument():
    now = [10.0]
    engine = ToyEngine(slots=1, clock=lambda: now[0])
    engine.submit(_request("a"))
    now[0] = 12.0
    (outcome,) = drive(engine, []).outcomes.values()
    assert outcome.stats.queued_s == 2.0


def test_cancel_while_waiting_and_twice():
    engine = ToyEngine(slots=1)
    engine.submit(_request("a"))
    engine.submit(_request("b", spec=dataclasses.replace(FREE, n=2)))
    engine.step()
    engine.cancel("b")
    engine.cancel("b")
    assert engine.waiting == 0
    run = drive(engine, [])
    assert [run.outcomes[RowId("b", sample)].reason for sample in (0, 1)] == ["cancelled"] * 2
    assert run.outcomes[RowId("a")].reason == "length"


def test_run_events_only_for_streams():
    def events(stream):
        engine = ToyEngine(stream=stream)
        engine.submit(_request(spec=dataclasses.replace(FREE, drafter=Card("constant"))))
        return [event for _ in range(10) for event in engine.step()]

    assert not [event for event in events(False) if isinstance(event, StepEvent | TextEvent)]
    steps = [event for event in events(True) if isinstance(event, StepEvent)]
    tokens = [event.token for event in events(True) if isinstance(event, TokenEvent)]
    assert [token for step in steps for token in step.emitted] == tokens
    assert [step.t0 for step in steps] == [sum(len(s.emitted) for s in steps[:i]) for i in range(len(steps))]
    assert all(len(step.path) == len(step.emitted) for step in steps)


def test_a_watched_row_shows_its_text_at_the_end():
    """A verdict may cut any number of bytes, so nothing is shown before the row has ended."""
    engine = ToyEngine(stream=True)
    engine.submit(_request(spec=dataclasses.replace(FREE, monitors=(Card("bias_a"),))))
    events = [event for _ in range(10) for event in engine.step()]
    texts = [event for event in events if isinstance(event, TextEvent)]
    outcome = next(event for event in events if isinstance(event, OutcomeEvent))
    assert [event.bytes for event in texts] == [outcome.text]


@pytest.mark.parametrize("stop", [(), (b"ab)",), (b"aa", b"b(")])
def test_a_resumed_stream_goes_on_where_it_was_cut(stop):
    """What was shown before the cut and what is shown after it are the text, whatever was held back at the cut."""
    for seed in range(4):
        spec = DecodingSpec(max_tokens=16, seed=seed, stop=stop)
        engine = ToyEngine(stream=True)
        engine.submit(_request(spec=spec))
        shown, tokens, outcome = [b""], [], None
        while engine.busy:
            for event in engine.step():
                match event:
                    case TokenEvent():
                        tokens.append(event.token)
                        shown.append(shown[-1])
                    case TextEvent():
                        shown[-1] += event.bytes
                    case OutcomeEvent():
                        outcome = event
        for cut in range(1, len(tokens)):
            rest = drive(ToyEngine(stream=True), [_request(spec=spec, resume=(tuple(tokens[:cut]),))])
            assert shown[cut] + rest.texts.get(RowId("r"), b"") == outcome.text


def test_resume_that_the_noise_would_not_draw_is_counted():
    first = drive(ToyEngine(), [_request()]).outcomes[RowId("r")].tokens
    wrong = (*first[:2], (first[2] + 1) % 4)
    outcome = drive(ToyEngine(), [_request(resume=(wrong,))]).outcomes[RowId("r")]
    assert outcome.tokens[:3] == wrong
    assert outcome.stats.replay_mismatches == 1


def test_a_resume_past_the_end_of_text_ends_there():
    outcome = drive(ToyEngine(), [_request(spec=DecodingSpec(max_tokens=9), resume=((1, 4, 1, 1),))]).outcomes[
        RowId("r")
    ]
    assert (outcome.reason, outcome.tokens) == ("eos", (1, 4))


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        (_request(prompt=(1, 9)), "BadToken", "token 9 is not in a vocabulary of 5"),
        (_request(prompt=(1, -1)), "BadToken", "token -1"),
        (_request(resume=((5,),)), "BadToken", "token 5"),
        (_request(resume=((1,) * 7,)), "BadResume", "no more ids than max_tokens"),
        (_request(resume=((1,), (1,))), "BadResume", "one tuple of ids per sample: n is 1, got 2"),
        (_request(spec=DecodingSpec(max_tokens=0)), "BadLimit", "max_tokens = 0"),
        (_request(spec=DecodingSpec(n=-2)), "BadLimit", "n = -2"),
        (_request(prompt=()), "EmptyPrompt", "at least one"),
        (_request(spec=DecodingSpec(sampler=(Card("top_q"),))), "Refused", "no sampler 'top_q'"),
        (_request(spec=DecodingSpec(search=Card("nonesuch"))), "Refused", "no search 'nonesuch'"),
        (_request(spec=DecodingSpec(sampler=(Card("min_p"),))), "BadOption", "min_p needs this option"),
        (_request(spec=DecodingSpec(sampler=(Card("min_p", {"q": 1}),))), "BadOption", "min_p has no option 'q'"),
        (_request(spec=DecodingSpec(sampler=(Card("min_p", {"p": 2.0}),))), "BadOption", "less than or equal to 1"),
        (_request(spec=DecodingSpec(sampler=(Card("greedy"), Card("temperature")))), "Refused", "contradict each"),
        (_request(spec=DecodingSpec(sampler=(Card("greedy"), Card("greedy")))), "Refused", "in the chain twice"),
    ],
)
def test_a_request_at_fault_is_an_outcome(request_, kind, said):
    (outcome,) = drive(ToyEngine(), [request_]).outcomes.values()
    assert (outcome.reason, outcome.error.kind) == ("error", kind)
    assert said in outcome.error.message


def test_more_logprobs_than_tokens_are_all_of_them():
    run = drive(ToyEngine(), [_request(spec=dataclasses.replace(FREE, logprobs=20))])
    (outcome,) = run.outcomes.values()
    assert [len(top) for _, top in outcome.logprobs] == [5] * 6
    for (logp, top), token in zip(outcome.logprobs, outcome.tokens, strict=True):
        assert logp == dict(top)[token]
        assert list(top) == sorted(top, key=lambda pair: -pair[1])


def test_given_objects_are_used():
    with visiting():
        from tests.methods.samplers import MirostatLike

        own = MirostatLike()
        assert ToyEngine(given={("samplers", "mirostat_like"): own}).method("samplers", "mirostat_like") is own
        engine = ToyEngine()
        assert engine.method("samplers", "greedy") is engine.method("samplers", "greedy")


# ------------------------------------------------------------------------------------ text in pieces of a byte or two
class Bytes(ToyLane):
    """The same table with tokens that are parts of characters, and one that spans two."""

    token_bytes = (b"\xc3", b"\xa9", b"x", b"\xe2\x82\xac\xc3", b"")


class BytesLoop(Loop):
    name = "toy"


@pytest.mark.parametrize("stop", [(), (b"\xa9x",), ("€é".encode(),)])
def test_shown_pieces_never_end_inside_a_character(stop):
    """A reader who decodes piece by piece reads what a reader of the whole text does, invalid bytes included."""
    for seed in range(12):
        engine = BytesLoop(Bytes(slots=2, context=64), stream=True)
        engine.submit(_request(spec=DecodingSpec(max_tokens=20, seed=seed, stop=stop, ignore_eos=True)))
        pieces, outcome = [], None
        while engine.busy:
            for event in engine.step():
                match event:
                    case TextEvent():
                        pieces.append(event.bytes)
                    case OutcomeEvent():
                        outcome = event
        assert b"".join(pieces) == outcome.text
        assert "".join(piece.decode(errors="replace") for piece in pieces) == outcome.text.decode(errors="replace")
        assert not [one for one in stop if one in outcome.text]
