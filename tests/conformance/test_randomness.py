"""The draw obeys its laws, its noise has the law of Gumbel, and noise from a generator is caught."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from scipy import stats

from raydecode import randomness
from raydecode.conformance import Violation
from raydecode.conformance import randomness as laws
from raydecode.conformance.drive import drive
from raydecode.conformance.engines import text_ignores_the_batch
from raydecode.engine import candidates
from raydecode.engine.toy import ToyEngine
from raydecode.request import DecodingSpec, Ids, Request


@pytest.mark.parametrize("law", laws.NOISE_LAWS, ids=lambda law: law.__name__)
def test_noise(law):
    law(randomness.gumbel)


@pytest.mark.parametrize("law", laws.DRAW_LAWS, ids=lambda law: law.__name__)
def test_draw(law):
    law(randomness.draw, randomness.gumbel)


def _look_at(monkeypatch, near, loud):
    """A draw that looks at other shares of the tokens: the token must not depend on it."""
    monkeypatch.setattr(randomness, "NEAR", near)
    monkeypatch.setattr(randomness, "LOUD", loud)
    monkeypatch.setattr(randomness, "LOUD_WORDS", int(-math.expm1(-math.exp(-loud)) * 2**31))


@pytest.mark.parametrize(("near", "loud"), [(0.5, 0.5), (3.0, 1.0), (6.0, 5.5), (2.0, 9.0)])
def test_draw_whatever_it_looks_at(near, loud, monkeypatch):
    _look_at(monkeypatch, near, loud)
    laws.draw_is_the_argmax(randomness.draw, randomness.gumbel)


def test_a_draw_that_never_looks_again_is_caught(monkeypatch):
    _look_at(monkeypatch, 3.0, 6.0)
    monkeypatch.setattr(randomness, "LOUD", -100.0)  # every first look seems enough
    with pytest.raises(Violation, match="draw_is_the_argmax"):
        laws.draw_is_the_argmax(randomness.draw, randomness.gumbel)


def test_noise_has_the_law_of_gumbel_across_tokens_positions_and_rows():
    keys = [randomness.derive(1, i) for i in range(400)]
    across_tokens = randomness.gumbel([7], [0], 20_000)[0]
    across_positions = randomness.gumbel([7] * 4000, range(4000), 5)[:, 2]
    across_rows = randomness.gumbel(keys * 10, [i // 400 for i in range(4000)], 3)[:, 1]
    for sample in (across_tokens, across_positions, across_rows):
        assert stats.kstest(sample.double().numpy(), "gumbel_r").pvalue > 0.01


def test_neighbours_are_not_correlated():
    """Neighbouring tokens, positions, rows and streams: |r| below 4 / sqrt(n)."""
    keys = [randomness.derive(1, i) for i in range(64)]
    noise = randomness.gumbel(keys, [3] * 64, 500).double()
    later = randomness.gumbel(keys, [4] * 64, 500).double()
    coins = randomness.gumbel(keys, [3] * 64, 500, randomness.COIN).double()
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise, later), (noise, coins)):
        r = torch.corrcoef(torch.stack([a.reshape(-1), b.reshape(-1)]))[0, 1]
        assert abs(float(r)) < 4 / math.sqrt(a.numel())


def test_coins_are_uniform():
    coins = [randomness.coin(randomness.derive(9, i), i % 50, i % 3) for i in range(4000)]
    assert stats.kstest(coins, "uniform").pvalue > 0.01


# ----------------------------------------------------------------------------------------------------- broken twins
def _generator_noise(keys, t, size, stream=0):
    """Twin: one generator for the batch, seeded by its first row, as frameworks do."""
    generator = torch.Generator().manual_seed((keys[0] + t[0]) & 0xFFFFFFFF)
    return -torch.empty(len(keys), size).exponential_(generator=generator).log()


def _sparse_noise_by_rank(x_RV, keys, t):
    """Twin: noise by a token's rank among those kept instead of its id."""
    kept = [row.isfinite().nonzero()[:, 0] for row in x_RV]
    picks = []
    for row, ids, key, step in zip(x_RV, kept, keys, t, strict=True):
        picks.append(ids[(row[ids] + randomness.gumbel([key], [step], len(ids))[0]).argmax()])
    return torch.stack(picks)


def test_generator_noise_is_caught():
    with pytest.raises(Violation, match="noise_ignores_the_batch"):
        laws.noise_ignores_the_batch(_generator_noise)
    with pytest.raises(Violation, match="noise_is_the_reference"):
        laws.noise_is_the_reference(_generator_noise)


def test_noise_by_rank_is_caught():
    with pytest.raises(Violation, match="draw_is_the_argmax"):
        laws.draw_is_the_argmax(_sparse_noise_by_rank, randomness.gumbel)


def test_an_engine_on_generator_noise_is_caught(monkeypatch):
    def draw(x_RV, keys, t, *_):
        return (x_RV + _generator_noise(keys, t, x_RV.shape[1])).argmax(1)

    requests = [Request(f"r{i}", f"r{i}", Ids((0, 1)), DecodingSpec(max_tokens=8)) for i in range(4)]
    make = functools.partial(ToyEngine)
    text_ignores_the_batch(make, requests, [{}])
    monkeypatch.setattr(candidates, "draw", draw)
    with pytest.raises(Violation, match="text_ignores_the_batch"):
        text_ignores_the_batch(make, requests, [{}])
    assert drive(make(), requests).outcomes, "the twin runs; it is only wrong"
