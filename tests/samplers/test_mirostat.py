"""Mirostat: the identity of its feedback, its rank by the paper's formula, its report when tau is out of reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raydecode.conformance.bench import BenchRows
from raydecode.conformance.drive import drive
from raydecode.engine.toy import EOS, ToyEngine, logits
from raydecode.randomness import draw
from raydecode.registry import get
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.samplers.mirostat1 import rank
from tests.samplers.reference import zipf_rank

BOTH = ("mirostat1", "mirostat2")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("tau", "eta"), [(1.3, 1.0), (3.0, 0.1), (6.0, 0.37)])
def test_mean_surprise_is_tau_up_to_the_drift_of_mu(name, tau, eta):
    """mean S - tau = (mu_1 - mu_(T+1)) / (eta T) to 1e-9, S recomputed in float64 with numpy."""
    sampler, steps, size = get("samplers", name).factory(), 300, 500
    options = {"tau": tau, "eta": eta}
    state = {column: float(start(options)) for column, start in sampler.columns.items()}
    generator, surprise = torch.Generator().manual_seed(4), 0.0
    for t in range(steps):
        x_1V = torch.randn(1, size, generator=generator) * 2.5
        rows = BenchRows([options], [state], [torch.zeros(t + 1, dtype=torch.int64)], [1], [9])
        token = draw(sampler.shape(x_1V, rows), [9], [t])
        own = x_1V.double().log_softmax(1)[0, token]
        state = {column: float(value) for column, value in sampler.observe(rows, token, own).items()}
        weight_V = np.exp(x_1V[0].double().numpy())
        surprise -= math.log2(weight_V[int(token)] / weight_V.sum())
    drift = (2 * tau - state["mu"]) / (eta * steps)
    assert surprise / steps - tau == pytest.approx(drift, abs=1e-9)
    assert sampler.report(options, state, steps)["mean_surprise_bits"] == pytest.approx(surprise / steps, abs=1e-9)


def test_it_controls_what_plain_sampling_does_not():
    """tau below the model's own surprise is met; the same draws without Mirostat are far from it."""
    means = {}
    for chain in ((Card("mirostat2", {"tau": 0.8, "eta": 0.5}),), (Card("mirostat2", {"tau": 20.0, "eta": 0.01}),)):
        spec = DecodingSpec(max_tokens=300, seed=1, sampler=chain, ignore_eos=True)
        (outcome,) = drive(ToyEngine(), [Request("a", "a", Ids((0, 1)), spec)]).outcomes.values()
        means[chain[0].options["tau"]] = outcome.reports[0]["mean_surprise_bits"]
    assert abs(means[0.8] - 0.8) < 0.05
    assert means[20.0] > 0.9


@pytest.mark.parametrize("size", [5, 50, 49_152])
@pytest.mark.parametrize("bits", [0.0, 0.7, 4.0, 9.0, 16.0])
def test_rank_is_the_papers(size, bits):
    generator = torch.Generator().manual_seed(size)
    best_RK = (torch.randn(40, size, generator=generator) * torch.linspace(0.2, 6, 40)[:, None]).sort(
        1, descending=True
    )
    top_RK = best_RK.values[:, :100].double()
    found = rank(top_RK, torch.full((40,), bits, dtype=torch.float64), size).tolist()
    for logits_K, k in zip(top_RK, found, strict=True):
        exact = zipf_rank(np.exp(logits_K.numpy()).tolist(), bits, size)
        assert k == int(np.clip(np.round(exact), 1, size))


def test_rank_where_the_formula_has_no_value():
    flat = rank(torch.zeros(1, 100, dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64), 1000)
    assert flat.tolist() == [1000], "no exponent: keep all"
    i = torch.arange(1, 101, dtype=torch.float64)
    zipf_R = rank(-i.log()[None], torch.tensor([8.0], dtype=torch.float64), 1000)
    assert zipf_R.tolist() == [round(2**8 / math.log(1000))], "exponent 1: the limit"
    masked = torch.full((1, 100), -math.inf, dtype=torch.float64)
    masked[0, :3] = torch.tensor([2.0, 1.0, 0.5])
    few = rank(masked, torch.tensor([1.0], dtype=torch.float64), 1000)
    assert few.tolist() == [max(round(zipf_rank(np.exp([2.0, 1.0, 0.5]).tolist(), 1.0, 1000)), 1)]
    assert rank(masked, torch.tensor([5000.0], dtype=torch.float64), 1000).tolist() == [1000], "2^mu overflows"
    assert rank(masked, torch.tensor([-5000.0], dtype=torch.float64), 1000).tolist() == [1]
    masked[0, 1:] = -math.inf
    assert rank(masked, torch.tensor([3.0], dtype=torch.float64), 1000).tolist() == [1000], (
        "one token left: nothing to cut"
    )


@pytest.mark.parametrize("name", BOTH)
def test_a_target_out_of_reach_is_reported(name):
    reports = {}
    for tau in (0.02, 0.9, 12.0):
        card = Card(name, {"tau": tau, "eta": 1.0})
        spec = DecodingSpec(max_tokens=120, seed=1, sampler=(card,), ignore_eos=True)
        (outcome,) = drive(ToyEngine(), [Request("a", "a", Ids((0, 1)), spec)]).outcomes.values()
        (reports[tau],) = outcome.reports
    assert reports[0.02]["collapsed"] > 0.9
    assert reports[12.0]["saturated"] > 0.9
    assert reports[12.0]["mean_surprise_bits"] < 3 < reports[12.0]["mu_bits"]
    assert reports[0.9]["saturated"] == 0
    assert reports[0.9]["collapsed"] < 0.6 < reports[0.02]["collapsed"]
    assert reports[0.9]["sampler"] == name


def test_engine_and_table_agree_on_surprise_under_a_constraint():
    """The whole engine: tau is met under the constrained law, to 1e-9."""
    tau, eta, prompt = 1.2, 0.5, (1, 1, 2)
    chain = (Card("logit_bias", {"bias": {EOS: -100.0}}), Card("mirostat2", {"tau": tau, "eta": eta}))
    (outcome,) = drive(
        ToyEngine(), [Request("m", "m", Ids(prompt), DecodingSpec(max_tokens=80, seed=3, sampler=chain))]
    ).outcomes.values()
    surprise, context = 0.0, prompt
    for token in outcome.tokens:
        x_V = logits(context)
        x_V[EOS] -= 100.0
        surprise -= float(x_V.double().log_softmax(0)[token]) / math.log(2)
        context = (*context, token)
    (report,) = outcome.reports
    assert report["mean_surprise_bits"] == pytest.approx(surprise / 80, abs=1e-9)
