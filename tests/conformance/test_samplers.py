"""The laws of samplers have teeth: each broken twin fails the law that it breaks; the honest one with state passes."""

from __future__ import annotations

import math

import pytest

from raydecode import conformance, registry
from raydecode.conformance import Violation, samplers
from raydecode.conformance.drive import drive
from raydecode.conformance.recorders import SamplerRecorder
from raydecode.engine.toy import EOS, ToyEngine, logits
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods import visiting

BREAKS = {
    "batch_mean": samplers.rows_do_not_see_each_other,
    "reinflating": samplers.never_allows_again,
    "in_place": samplers.pure,
    "emptying": samplers.keeps_a_token,
    "restless": samplers.pure,
    "reordering": samplers.keeps_the_likeliest,
    "doubling": samplers.keeps_shape,
    "not_quite_identity": samplers.identity_changes_nothing,
    "undescribed": samplers.declared,
    "snooping": samplers.declares_what_it_reads,
    "forgetful": samplers.state_is_a_fold_of_the_row,
    "misbanded": samplers.band_is_its_shape,
    "width_minded": samplers.candidates_are_enough,
}


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


@pytest.mark.parametrize("name", BREAKS)
def test_twin_fails_its_law(name):
    with pytest.raises(Violation, match=f"samplers/{name} breaks '{BREAKS[name].__name__}'"):
        BREAKS[name](registry.get("samplers", name))


@pytest.mark.parametrize("law", samplers.LAWS, ids=lambda law: law.__name__)
def test_sampler_with_state_obeys(law):
    law(registry.get("samplers", "mirostat_like"))


@pytest.mark.parametrize("drafter", [None, "recycling", "random_paths", "hostile"])
def test_own_logp_is_that_of_the_stages_own_input(drafter):
    """Mirostat's identity: the mean surprise is tau + (mu_0 - mu_T) / (eta T), to rounding, under every drafter.

    The surprise is recomputed from the table, under the constraint (no EOS) that stands before the chain.
    """
    recorder = SamplerRecorder(registry.get("samplers", "mirostat_like").factory())
    tau, eta, prompt = 1.2, 0.5, (1, 1, 2)
    spec = DecodingSpec(
        max_tokens=80, seed=3, sampler=(Card("mirostat_like", {"tau": tau, "eta": eta}),),
        monitors=(Card("scripted", {"what": "no eos", "at": 0}),), drafter=Card(drafter) if drafter else None,
    )  # fmt: skip
    run = drive(ToyEngine(given={("samplers", "mirostat_like"): recorder}), [Request("m", "m", Ids(prompt), spec)])
    (outcome,) = run.outcomes.values()
    (trace,) = recorder.traces.values()
    surprise, context = 0.0, prompt
    for token in outcome.tokens:
        x_V = logits(context).double()
        x_V[EOS] = -math.inf
        surprise -= float(x_V.log_softmax(0)[token]) / math.log(2)
        context = (*context, token)
    assert len(outcome.tokens) == 80
    mu = trace[-1][3]["mu"]
    assert surprise / 80 - tau == pytest.approx((2 * tau - mu) / (eta * 80), abs=1e-7)


def test_forced_tokens_surprise_nobody():
    """A constraint that leaves one token makes its own logp 0, and never -inf, whatever the chain cut before."""
    recorder = SamplerRecorder(registry.get("samplers", "mirostat_like").factory())
    spec = DecodingSpec(
        max_tokens=12, sampler=(Card("top_k", {"k": 1}), Card("mirostat_like", {"tau": 1.2, "eta": 0.5})),
        monitors=(Card("scripted", {"what": "forced", "at": 2}),),
    )  # fmt: skip
    run = drive(ToyEngine(given={("samplers", "mirostat_like"): recorder}), [Request("f", "f", Ids((0, 1)), spec)])
    (outcome,) = run.outcomes.values()
    (trace,) = recorder.traces.values()
    assert [event.source for event in next(iter(run.tokens.values()))][2:] == ["forced"] * (len(outcome.tokens) - 2)
    assert all(own_logp == 0.0 for t, _, own_logp, _ in trace if t >= 2)


def test_check_names_method_law_and_counter_example():
    with pytest.raises(Violation) as caught:
        conformance.check(registry.get("samplers", "batch_mean"))
    assert caught.value.subject == "samplers/batch_mean"
    assert "row" in caught.value.found
