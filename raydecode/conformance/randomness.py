"""Laws of the draw: noise is a function of (key, stream, t, token) alone, and a token the argmax of logits plus noise.

Any implementation of the two functions (another device, a fused kernel) is held against a reference in plain Python
integers. x_RV: float32 logits, R rows, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from raydecode.conformance.law import require, same_bits
from raydecode.randomness import DRAW, derive

Gumbel = Callable[..., Tensor]
"""(keys, t, size, stream=DRAW) -> float32 [R, size]."""
Draw = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""(x_RV, keys, t) -> int64 [R]."""

_M32 = (1 << 32) - 1


def reference_word(key: int, stream: int, t: int, token: int) -> int:
    """The 31 bits behind one number of noise (`raydecode.randomness`, formula in its docstring), in Python integers."""
    both = derive(key, stream, t)
    x = (token * 0x9E3779B1) & _M32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & _M32
    x ^= x >> 16
    x ^= both & _M32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _M32
    x ^= x >> 15
    x ^= both >> 32
    x = (x * 0x846CA68B) & _M32
    return (x ^ (x >> 16)) & 0x7FFFFFFF


def reference_gumbel(key: int, stream: int, t: int, token: int) -> float:
    """The number itself, its uniform in float32 as specified, the logarithms in float64."""
    u = (np.float32(reference_word(key, stream, t, token)) + np.float32(0.5)) * np.float32(2.0**-31)
    u = min(u, np.float32(1 - 2.0**-24))
    return -math.log(-math.log1p(-float(u)))


def noise_is_the_reference(gumbel: Gumbel) -> None:
    """Every number equals the reference within float32's rounding of two logarithms."""
    keys, t = _keys(6), [0, 1, 2, 1000, 65_535, 2**31]
    for stream in (DRAW, 1, 7):
        noise_RV = gumbel(keys, t, 300, stream)
        for r, (key, step) in enumerate(zip(keys, t, strict=True)):
            for token in (0, 1, 2, 7, 99, 255, 299):
                have, want = float(noise_RV[r, token]), reference_gumbel(key, stream, step, token)
                near = math.isclose(have, want, rel_tol=1e-5, abs_tol=2e-6)
                require(near, gumbel, "noise_is_the_reference", f"key {key}, t {step}, token {token}: {have}, {want}")


def noise_ignores_the_batch(gumbel: Gumbel) -> None:
    """A row's bits are the same alone, among others, in any order, and for any size of the vocabulary."""
    keys, t = _keys(9), [3 * i for i in range(9)]
    for size in (1, 5, 31, 1000, 49_152):
        together = gumbel(keys, t, size)
        flipped = gumbel(keys[::-1], t[::-1], size).flip(0)
        require(same_bits(together, flipped), gumbel, "noise_ignores_the_batch", f"size {size}: order matters")
        for r in (0, 4, 8):
            alone = gumbel(keys[r : r + 1], t[r : r + 1], size)
            same = same_bits(alone, together[r : r + 1])
            require(same, gumbel, "noise_ignores_the_batch", f"size {size}, row {r}: differs alone")
        wider = gumbel(keys, t, size + 3)[:, :size]
        require(
            same_bits(wider, together), gumbel, "noise_ignores_the_batch", f"size {size}: depends on the vocabulary"
        )


def draw_is_the_argmax(draw: Draw, gumbel: Gumbel) -> None:
    """The drawn token is the first argmax of logits + noise, however few tokens are left in a row, mixed in a batch.

    Flat rows, where any token may win, and steep ones, where a draw may look at few: and among these rows whose largest
    logit meets the least noise, so that a token of loud noise from far below wins.
    """
    generator = torch.Generator().manual_seed(5)
    rows, size = 24, 1500
    keys, t = _keys(rows), list(range(rows))
    noise_RV = gumbel(keys, t, size)
    for spread in (0.1, 1.0, 4.0, 40.0):
        x_RV = torch.randn(rows, size, generator=generator) * spread
        x_RV[1::6].scatter_(1, noise_RV[1::6].argmin(1, keepdim=True), 9.0 * spread)
        x_RV[2::6] = torch.full((4, size), -9.9 - spread).scatter_(1, noise_RV[2::6].argmin(1, keepdim=True), 0.0)
        x_RV[3::6] += 3e4
        for left in (size, size // 3, 40, 3, 1):
            kept_RV = torch.rand(rows, size, generator=generator).argsort(1) < left
            y_RV = x_RV.masked_fill(~kept_RV, -math.inf)
            y_RV[::5] = x_RV[::5]  # wide rows among narrow ones
            expected = (y_RV + noise_RV).argmax(1)
            found, where = draw(y_RV, keys, t), f"spread {spread}, {left} tokens left"
            require(torch.equal(found, expected), draw, "draw_is_the_argmax", f"{where}: {found} not {expected}")
            for r in range(rows):
                alone = draw(y_RV[r : r + 1], keys[r : r + 1], t[r : r + 1])
                require(int(alone) == int(expected[r]), draw, "draw_is_the_argmax", f"{where}, row {r}: differs alone")


def ties_go_to_the_lowest_id(draw: Draw, gumbel: Gumbel) -> None:
    """Logits so large that float32 swallows the noise: all candidates tie, the lowest id wins."""
    keys, t = _keys(16), list(range(16))
    wide_RV = torch.full((16, 40), 2.0**30)
    narrow_RV = torch.full((16, 400), -math.inf)
    narrow_RV[:, [17, 3, 250]] = 2.0**30
    for x_RV, lowest in ((wide_RV, 0), (narrow_RV, 3)):
        found = draw(x_RV, keys, t).tolist()
        require(found == [lowest] * 16, draw, "ties_go_to_the_lowest_id", f"drew {found}, the lowest is {lowest}")


def one_token_left_is_drawn(draw: Draw, gumbel: Gumbel) -> None:
    """Temperature 0 and forced tokens: one finite logit, that token, whatever the noise."""
    keys, t = _keys(8), [5] * 8
    x_RV = torch.full((8, 64), -math.inf)
    for r in range(8):
        x_RV[r, 63 - 9 * r if r < 7 else 0] = -50.0 * r
    found, expected = draw(x_RV, keys, t), x_RV.argmax(1)
    require(torch.equal(found, expected), draw, "one_token_left_is_drawn", f"{found}, should be {expected}")


NOISE_LAWS = (noise_is_the_reference, noise_ignores_the_batch)
DRAW_LAWS = (draw_is_the_argmax, ties_go_to_the_lowest_id, one_token_left_is_drawn)


def _keys(count: int) -> list[int]:
    return [derive(0xC0FFEE, i) for i in range(count)]
