"""Sums whose bits are a row's own, and selections that are those of a full sort."""

from __future__ import annotations

import math

import pytest
import torch

from raydecode import numerics

SIZE = 40_009


def _rows(count: int = 6, size: int = SIZE) -> torch.Tensor:
    x_RC = torch.randn(count, size, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.3, 9, count)[:, None]
    x_RC[1] = (x_RC[1] * 4).round() / 4  # ties
    x_RC[2, ::3] = -math.inf
    return x_RC


def test_a_sum_has_one_value_in_every_order_and_width():
    x_RC = _rows().softmax(1)
    truth_R = x_RC.double().sum(1)
    found_R = numerics.grid_sum_(x_RC.double(), 1.0)
    assert found_R.tolist() == pytest.approx(truth_R.tolist(), abs=SIZE * 2**-34)
    shuffled_RC = x_RC[:, torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(numerics.grid_sum_(shuffled_RC.double()), found_R)
    assert torch.equal(numerics.grid_sum_(torch.nn.functional.pad(x_RC, (3, 4000)).double()), found_R)
    assert not torch.equal(shuffled_RC.sum(1), x_RC.sum(1)), "a plain sum has another one"


def test_a_sum_of_large_terms_has_a_coarser_grid():
    x_RC = _rows().nan_to_num(neginf=0.0) * 1e6
    most_R1 = x_RC.abs().amax(1, keepdim=True)
    found_R, truth_R = numerics.grid_sum_(x_RC.double(), most_R1), x_RC.double().sum(1)
    assert ((found_R - truth_R).abs() <= SIZE * most_R1[:, 0] * 2**-33).all()
    assert torch.equal(numerics.grid_sum_(x_RC.flip(1).double(), most_R1), found_R)


def test_normaliser_and_entropy():
    x_RC = _rows()
    lse_R, entropy_R = numerics.normaliser_and_entropy(x_RC)
    logp_RC = x_RC.double().log_softmax(1)
    truth_R = -(logp_RC.exp() * logp_RC.clamp(min=-1e4)).sum(1)
    exact_R = x_RC.double().logsumexp(1)
    best_R = x_RC.amax(1).double()
    bound_R = SIZE * 2**-34 * (best_R - exact_R).exp() + 1e-12
    assert ((numerics.normaliser(x_RC) - exact_R).abs() <= bound_R).all()
    assert lse_R.tolist() == pytest.approx(exact_R.tolist(), abs=2e-6)
    assert torch.equal(lse_R, numerics.normaliser(x_RC, fine=False))
    assert entropy_R.tolist() == pytest.approx(truth_R.tolist(), abs=1e-5)
    alone = [numerics.normaliser_and_entropy(x_RC[r : r + 1]) for r in range(len(x_RC))]
    assert torch.equal(torch.stack([torch.cat(both) for both in alone], 1), torch.stack([lse_R, entropy_R]))


@pytest.mark.parametrize("k", [1, 2, 40, 700, 20_000, SIZE])
def test_the_kth_largest_is_a_full_sorts(k):
    x_RC = _rows()
    x_RC[3] = x_RC[3].sort().values  # where a sample says the most
    x_RC[4, : SIZE - 5] = -math.inf
    best_RC = x_RC.sort(1, descending=True).values
    assert torch.equal(numerics.kth_largest(x_RC, torch.full((len(x_RC),), k)), best_RC[:, k - 1])
    assert torch.equal(numerics.largest(x_RC, k), best_RC[:, :k])


@pytest.mark.parametrize("mass", [1e-6, 0.3, 0.9, 0.9999, 1.0])
@pytest.mark.parametrize("peak", [None, 1.5])
def test_a_band_is_a_full_sorts(mass, peak):
    """Taken from the largest logit down, or from the nearest to `peak` outwards; the device's way gives the same."""
    x_RC = _rows()
    peak_R = None if peak is None else torch.full((len(x_RC),), peak)
    key_RC = x_RC if peak is None else -(x_RC - peak).abs()
    lse_R, mass_R = numerics.normaliser(x_RC), torch.full((len(x_RC),), mass, dtype=torch.float64)
    low_R, high_R = numerics.band_at_mass(x_RC, lse_R, mass_R, peak_R)
    kept_RC = (x_RC >= low_R[:, None]) & (x_RC <= high_R[:, None])
    p_RC = (x_RC.double() - lse_R[:, None]).exp()
    rounding = SIZE * 2**-35  # shares are added on the grid
    for key_C, kept_C, p_C in zip(key_RC, kept_RC, p_RC, strict=True):
        least = key_C[kept_C].min()
        assert torch.equal(kept_C, key_C >= least), "a band of logits is a set of best keys"
        if mass < 1:
            assert p_C[kept_C].sum() >= mass - rounding
            assert p_C[kept_C & (key_C > least)].sum() < mass + rounding, "without its last keys it is too small"
    there = torch.full_like(low_R, -math.inf), torch.full_like(low_R, math.inf)
    left = (mass_R < 1).nonzero()[:, 0]
    numerics._bands_on_device(x_RC, lse_R, mass_R, peak_R, left, *there)
    assert torch.equal(there[0], low_R)
    assert torch.equal(there[1], high_R)


def test_a_nan_is_outside_of_nothing():
    x_RC = torch.tensor([[1.0, math.nan, 3.0, 4.0]])
    kept = numerics.within(x_RC, torch.tensor([2.0]), torch.tensor([3.5]))
    assert kept[0].isneginf().tolist() == [True, False, False, True]
    assert numerics.columns_within(x_RC[0].numpy(), 2.0, 3.5).tolist() == [1, 2]
