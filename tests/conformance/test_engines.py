"""The toy engine obeys the laws of engines, and engines with one bug each do not."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from raydecode.conformance import Violation, engines, workload
from raydecode.conformance.drive import drive
from raydecode.engine import candidates
from raydecode.engine.toy import EOS, ToyEngine
from raydecode.events import TextEvent
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods import visiting

VARIANTS = ({"slots": 1}, {"slots": 7}, {"slots": 64}, {"slots": 5, "chunk": 1}, {"slots": 8, "chunk": 3})
SAMPLED = Request("s", "s", Ids((0, 1, 2)), DecodingSpec(max_tokens=12, seed=1))


@pytest.fixture(autouse=True)
def guests():
    with visiting(honest_only=True):
        yield


@pytest.fixture
def requests():
    """A third of the mixed workload, some of it drafted: every chain and every monitor occurs."""
    return [
        dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, drafter=Card("recycling") if i % 2 else None))
        for i, r in enumerate(workload.requests())
    ][::3]


def test_every_row_ends_once(requests):
    engines.every_row_ends_once(ToyEngine, requests)


def test_text_ignores_the_batch(requests):
    engines.text_ignores_the_batch(ToyEngine, requests, VARIANTS)


@pytest.mark.parametrize("drafter", [None, Card("recycling")])
def test_samples_are_their_own(drafter):
    engines.samples_are_their_own(ToyEngine, engines._with(SAMPLED, drafter=drafter))


def test_equal_keys_equal_texts():
    engines.equal_keys_equal_texts(ToyEngine, SAMPLED)


def test_limits_only_cut(requests):
    for request in requests[::3]:
        engines.limits_only_cut(ToyEngine, request)


def test_cancel_frees_at_once(requests):
    engines.cancel_frees_at_once(ToyEngine, requests)


def test_resume_goes_on(requests):
    for request in requests[::3]:
        engines.resume_goes_on(ToyEngine, request, (None, Card("recycling")))


def test_samples_resume_each_from_its_own(requests):
    for request in requests[::3]:
        engines.samples_resume_each_from_its_own(ToyEngine, request)


def test_texts_end_at_stop_strings():
    specs = [
        DecodingSpec(max_tokens=30, seed=i, n=3, stop=stop, stop_tokens=tokens, ignore_eos=bool(i % 2), drafter=drafter)
        for i, stop in enumerate([(b"ab)",), (b"aa", b"ba"), (b"(", b"b("), (b"abab",), ()])
        for tokens in ((), (3,))
        for drafter in (None, Card("recycling"))
    ]
    requests = [Request(f"t{i}", f"t{i}", Ids((i % 4,)), spec) for i, spec in enumerate(specs)]
    engines.texts_end_at_stop_strings(ToyEngine, requests, frozenset({EOS}))
    run = drive(ToyEngine(), requests)
    assert {"stop", "eos", "length"} <= {one.reason for one in run.outcomes.values()}


def test_shown_text_is_never_taken_back(requests):
    engines.shown_text_is_never_taken_back(ToyEngine, requests)


def test_refusals_are_honest():
    specs = [
        DecodingSpec(max_tokens=4),
        DecodingSpec(max_tokens=4, sampler=(Card("greedy"),), monitors=(Card("brackets"),)),
        DecodingSpec(max_tokens=4, drafter=Card("recycling")),
        DecodingSpec(max_tokens=4, sampler=(Card("elsewhere"),)),
        DecodingSpec(max_tokens=4, monitors=(Card("hidden_reader"),)),
        DecodingSpec(max_tokens=4, sampler=(Card("top_o"),)),
    ]
    with visiting(honest_only=True):
        from raydecode import registry
        from raydecode.contracts import Needs
        from tests.methods.monitors import Watching
        from tests.methods.samplers import Stateless

        registry.register("samplers", name="elsewhere", engines=("vllm",))(type("Elsewhere", (Stateless,), {}))
        reader = type("HiddenReader", (Watching,), {"needs": Needs(hidden=("last",))})
        registry.register("monitors", engines=("toy",))(reader)
        engines.refusals_are_honest(ToyEngine, SAMPLED, specs)
        refusals = [ToyEngine().refuse(spec) for spec in specs]
        assert [one is not None for one in refusals] == [False, False, False, True, True, True]
        assert [one.field for one in refusals[3:]] == ["decoding.sampler", "decoding.monitors", "decoding.sampler"]
        assert refusals[-1].nearest == "top_p"


def test_faults_stay_alone(requests):
    bad = [
        Request("empty", "x", Ids(())),
        Request("foreign", "x", Ids((1, 9))),
        Request("long", "x", Ids((0,) * 5000)),
        Request("unknown", "x", Ids((1,)), DecodingSpec(sampler=(Card("top_q"),))),
        Request("optionless", "x", Ids((1,)), DecodingSpec(sampler=(Card("top_p"),))),
        Request("none", "x", Ids((1,)), DecodingSpec(n=0)),
        Request("no tokens", "x", Ids((1,)), DecodingSpec(max_tokens=0)),
        Request("resumed", "x", Ids((1,)), DecodingSpec(max_tokens=3), resume=((1, 99),)),
        Request("overlong", "x", Ids((1,)), DecodingSpec(max_tokens=2), resume=((1, 1, 1),)),
        Request("two", "x", Ids((1,)), DecodingSpec(n=2), resume=((1,),)),
        Request("overflow", "x", Ids((1,) * 4090), DecodingSpec(max_tokens=99), overflow="cut_middle"),
    ]
    engines.faults_stay_alone(ToyEngine, requests, bad)


# --------------------------------------------------------------------------------------------- engines with one bug
class Doubled(ToyEngine):
    """Sends every outcome twice."""

    def step(self):
        return [event for event in super().step() for _ in range(2)]


class Forgetful(ToyEngine):
    """Ignores `resume`."""

    def submit(self, request):
        super().submit(dataclasses.replace(request, resume=()))


class FirstOnly(ToyEngine):
    """Resumes the first sample and begins the others anew."""

    def submit(self, request):
        kept = tuple(ids if sample == 0 else () for sample, ids in enumerate(request.resume))
        super().submit(dataclasses.replace(request, resume=kept))


class SlowCancel(ToyEngine):
    """Cancels nothing."""

    def cancel(self, id):
        pass


class Hasty(ToyEngine):
    """Shows bytes that a stop string may yet take back."""

    def _show(self, row, events):
        if len(row.text) > row.shown:
            events.append(TextEvent(row.id, row.text[row.shown :]))
        row.shown = len(row.text)


class SameKeys(ToyEngine):
    """All samples of a request share one key."""

    def _rows_of(self, request):
        rows = super()._rows_of(request)
        for row in rows:
            row.key = rows[0].key
        return rows


@pytest.mark.parametrize(
    ("engine", "law"),
    [
        (Doubled, lambda make: engines.every_row_ends_once(make, [SAMPLED])),
        (Forgetful, lambda make: engines.resume_goes_on(make, SAMPLED)),
        (FirstOnly, lambda make: engines.samples_resume_each_from_its_own(make, SAMPLED)),
        (SlowCancel, lambda make: engines.cancel_frees_at_once(make, [SAMPLED, dataclasses.replace(SAMPLED, id="b")])),
        (Hasty, lambda make: engines.shown_text_is_never_taken_back(make, workload.requests())),
        (SameKeys, lambda make: engines.samples_are_their_own(make, SAMPLED)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_engine_with_a_bug_is_caught(engine, law):
    law(ToyEngine)
    with pytest.raises(Violation):
        law(engine)


def test_sampling_by_slot_is_caught(monkeypatch):
    """Keys by position in the batch, as many engines draw."""
    honest = candidates.draw
    monkeypatch.setattr(candidates, "draw", lambda x_RV, keys, t, *_: honest(x_RV, list(range(len(keys))), t))
    with pytest.raises(Violation, match="text_ignores_the_batch"):
        engines.text_ignores_the_batch(functools.partial(ToyEngine), workload.requests()[:4], [{"slots": 4}])
