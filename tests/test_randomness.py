"""Numbers that may never change: every text ever made is a function of them. The laws are in tests/conformance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from raydecode import randomness
from raydecode.conformance.randomness import reference_gumbel


def test_splitmix64_is_the_published_one():
    """First outputs of Steele et al.'s generator with seed 1234567, as in Vigna's C code."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [randomness.mix((1234567 + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(5)] == expected


def test_mix_is_a_bijection_on_a_sample():
    assert len({randomness.mix(x) for x in range(20_000)}) == 20_000


def test_derived_keys_depend_on_order_and_number_of_parts():
    keys = [randomness.derive(1, *parts) for n in range(4) for parts in itertools.product((0, 1, 2), repeat=n)]
    assert len(set(keys)) == len(keys)
    assert randomness.derive(1, 2, 3) == randomness.derive(randomness.derive(1, 2), 3)
    assert randomness.derive(1, -1) == randomness.derive(1, 2**64 - 1), "parts are 64-bit words"


def test_known_noise():
    noise = randomness.gumbel([12345], [7], 4)[0].tolist()
    assert noise == pytest.approx([-0.708842, 0.794815, 0.799299, 0.863852], rel=1e-5)
    assert noise == pytest.approx([reference_gumbel(12345, 0, 7, v) for v in range(4)], rel=1e-5)


def test_noise_is_finite_where_words_are_extreme():
    words = torch.tensor([0, 1, 2**31 - 1, 2**31 - 2], dtype=torch.int64)
    u = (words.to(torch.float32) + 0.5) * 2.0**-31
    noise = -torch.log(-torch.log1p(-u.clamp(max=1 - 2.0**-24)))
    assert noise.isfinite().all()
    assert float(noise.max()) == pytest.approx(32 * math.log(2), rel=1e-3), "the largest number of noise, 22.2 nats"


def test_draw_over_one_token_and_one_row():
    assert randomness.draw(torch.zeros(1, 1), [1], [0]).tolist() == [0]


def test_draw_takes_python_ints_of_any_size():
    assert randomness.draw(torch.zeros(2, 8), [2**64 - 1, 0], [2**40, 0]).shape == (2,)
