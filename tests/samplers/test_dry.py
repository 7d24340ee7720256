"""DRY against the definition, tried by brute force: no library that the tests may use has it."""

from __future__ import annotations

import numpy as np
import torch

from raydecode.conformance.bench import BenchRows
from raydecode.samplers.dry import LONGEST, Dry
from tests.samplers.reference import dry


def _shaped(x_V: torch.Tensor, options: dict, ids: list[int]) -> np.ndarray:
    rows = BenchRows([options], [{}], [torch.tensor(ids)], [1], [0])
    return Dry().shape(x_V[None], rows)[0].double().numpy()


def test_random_histories_of_few_tokens():
    generator = torch.Generator().manual_seed(2)
    for case in range(400):
        size, length = 2 + case % 5, 1 + case % 23
        x_V = torch.randn(size, generator=generator)
        ids = torch.randint(0, size, (length,), generator=generator).tolist()
        options = {
            "multiplier": 0.8, "base": 1.0 + (case % 3), "allowed_length": 1 + case % 3,
            "window": (0, 4, 9)[case % 3], "breakers": ((), (0,), (1, 77))[case // 3 % 3],
        }  # fmt: skip
        expected = dry(x_V.double().numpy(), options, ids, [])
        np.testing.assert_allclose(
            _shaped(x_V, options, ids), expected, rtol=2e-6, atol=1e-6, err_msg=f"{options}, {ids}"
        )


def test_a_loop_is_one_long_match_that_stops_counting():
    options = {"multiplier": 1.0, "base": 1.5, "allowed_length": 2, "window": 0, "breakers": ()}
    x_V = torch.zeros(4)
    for repeats in (3, 30, 300):
        found = _shaped(x_V, options, [0, 1, 2] * repeats)
        expected = 1.5 ** (min(3 * repeats - 3, LONGEST) - 2)
        np.testing.assert_allclose(found, [-expected, 0, 0, 0], rtol=1e-6)
