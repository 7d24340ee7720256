"""Formulas of more than one room, in a form whose bits depend on a row's own tokens alone.

torch's `sum`, `mean` and `logsumexp` add in an order that follows the width of a row, the number of rows and the
threads. Here the terms of a sum are first rounded to one grid, so coarse that no partial sum rounds (`grid_sum_`):
every order gives the same bits, and tokens that are forbidden (-inf) add exactly nothing. A row therefore has the same
bits alone, in every batch, and as the few candidates that an earlier stage left of it (a law of samplers).

On the CPU rows are taken a block at a time, in memory that is used again: fresh memory for every intermediate result
of 49,152 numbers costs more than most of the arithmetic.

Legend: R rows, C candidates, K of them in some order; all values in nats unless the name says bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from torch import Tensor

    Numbers = ndarray[Any, Any]

FEW = 1 << 16
"""Numbers handled at once on the CPU."""

GRID_BITS = 34
"""Terms are multiples of 2^-34 of their largest size (a power of two): sums of 2^18 stay within float64's 53 bits."""

GRID = 1.5 * 2.0 ** (52 - GRID_BITS)
"""Added to a number of size 1 and taken away again it leaves no bit below the grid."""


def grid_sum_(x_RC: Tensor, most_R1: Tensor | float = 1.0) -> Tensor:
    """float64 [R]: the sum of each row of float64 numbers, rounded to the grid in place.

    most: a bound on their size; 1, or any number per row. Error: at most 2^-34 of it per term.
    """
    import torch

    unit_R1: Tensor | float = 1.0
    if not isinstance(most_R1, float):
        unit_R1 = torch.ldexp(torch.ones_like(most_R1, dtype=torch.float64), torch.frexp(most_R1).exponent)
    grid_R1 = unit_R1 * GRID
    return x_RC.add_(grid_R1).sub_(grid_R1).sum(1)


def blocks(x_RC: Tensor) -> list[slice]:
    """Rows that are handled at once."""
    step = max(FEW // max(x_RC.shape[1], 1), 1) if x_RC.device.type == "cpu" else max(len(x_RC), 1)
    return [slice(start, start + step) for start in range(0, len(x_RC), step)]


def scratch(x_RC: Tensor, *dtypes: torch.dtype) -> list[Tensor]:
    """Room for one block, of each dtype: fresh memory for each row costs more than the arithmetic (page faults)."""
    rows = min(blocks(x_RC)[0].stop, len(x_RC)) if len(x_RC) else 0
    return [x_RC.new_empty(rows, x_RC.shape[1], dtype=dtype) for dtype in dtypes]


def normaliser(x_RC: Tensor, *, fine: bool = True) -> Tensor:
    """float64 [R]: ln sum exp(x). fine: terms in float64, else in float32 (some 1e-7, two thirds of the time)."""
    import torch

    out_R = x_RC.new_empty(len(x_RC), dtype=torch.float64)
    down_BC, weight_BC = scratch(x_RC, torch.float32, torch.float64)
    for rows in blocks(x_RC):
        x_BC, best_B1 = x_RC[rows], x_RC[rows].amax(1, keepdim=True)
        down, weight = down_BC[: len(x_BC)], weight_BC[: len(x_BC)]
        if fine:
            weight.copy_(x_BC).sub_(best_B1.double()).exp_()
        else:
            weight.copy_(torch.sub(x_BC, best_B1, out=down).exp_())
        out_R[rows] = grid_sum_(weight).log_().add_(best_B1[:, 0])
    return out_R


def normaliser_and_entropy(x_RC: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [R] each: ln sum exp(x), and -sum p ln p of the law; terms in float32."""
    import torch

    lse_R, entropy_R = (x_RC.new_empty(len(x_RC), dtype=torch.float64) for _ in range(2))
    down_BC, share_BC, weight_BC = scratch(x_RC, torch.float32, torch.float32, torch.float64)
    for rows in blocks(x_RC):
        x_BC, best_B1 = x_RC[rows], x_RC[rows].amax(1, keepdim=True)
        down, share, weight = (one[: len(x_BC)] for one in (down_BC, share_BC, weight_BC))
        torch.sub(x_BC, best_B1, out=down).clamp_(min=-200.0)  # exp(-200) is below the grid, and -inf * 0 is no NaN
        mass_B = grid_sum_(weight.copy_(torch.exp(down, out=share)))
        steep_B = grid_sum_(weight.copy_(down.mul_(share)))
        log_B = mass_B.log()
        lse_R[rows], entropy_R[rows] = log_B + best_B1[:, 0], log_B - steep_B / mass_B
    return lse_R, entropy_R


# ------------------------------------------------------------------------------------------------------ selections
SAMPLE = 1024
"""Numbers of a row that are looked at to guess where its k-th largest lies."""

SELECT, WIDER = 256, 4096
"""Candidates tried before a full sort, on devices other than the host."""

REACHES = (4.0, 7.0, 10.0, 14.0, math.inf)
"""nats that candidates may lie from the peak, tried one after the other."""


def largest(x_RC: Tensor, k: int) -> Tensor:
    """[R, min(k, C)]: the largest of each row, the largest first."""
    import numpy as np
    import torch

    k = min(k, x_RC.shape[1])
    if x_RC.device.type != "cpu":
        return x_RC.topk(k, dim=1).values
    out_RK = np.empty((len(x_RC), k), dtype=np.float32)
    for r, x_C in enumerate(x_RC.numpy()):
        few = _superset(x_C, k)
        out_RK[r] = np.sort(few)[: -k - 1 : -1]
    return torch.from_numpy(out_RK)


def kth_largest(x_RC: Tensor, k_R: Tensor) -> Tensor:
    """[R]: the k-th largest of each row, k from 1 to C."""
    import numpy as np
    import torch

    if x_RC.device.type != "cpu":
        return x_RC.topk(int(k_R.max()), dim=1).values.gather(1, k_R[:, None] - 1)[:, 0]
    out_R = np.empty(len(x_RC), dtype=np.float32)
    for r, (x_C, k) in enumerate(zip(x_RC.numpy(), k_R.tolist(), strict=True)):
        few = _superset(x_C, k)
        out_R[r] = np.partition(few, len(few) - k)[len(few) - k]
    return torch.from_numpy(out_R)


def _superset(x_C: Numbers, k: int) -> Numbers:
    """All numbers that are at least as large as some number, at least k of them, and seldom many more."""
    import numpy as np

    stride = len(x_C) // SAMPLE
    rank = int(1.3 * k / max(stride, 1)) + 8
    if stride > 1 and rank < SAMPLE // 4:
        sample = x_C[::stride]
        few: Numbers = x_C[x_C >= np.partition(sample, len(sample) - rank)[len(sample) - rank]]
        if len(few) >= k:
            return few
    return x_C


def band_at_mass(x_RC: Tensor, lse_R: Tensor, mass_R: Tensor, peak_R: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[R] each: the least and the largest logit among the candidates that the mass needs, nearest to the peak first.

    lse_R, mass_R: float64; at a mass of 1 or more everything is needed: -inf and inf. peak_R: None is the largest
    logit. Candidates equally near stay together.
    Cost: the few candidates near the peak are sorted; a row that needs more is tried wider, then whole. All widths give
    the same bits: the normaliser is of the whole row, and the beginning of a running sum on the grid is its own.
    """
    import torch

    low_R, high_R = torch.full_like(x_RC[:, 0], -math.inf), torch.full_like(x_RC[:, 0], math.inf)
    left = ((mass_R < 1) & lse_R.isfinite()).nonzero()[:, 0]
    if x_RC.device.type != "cpu":
        _bands_on_device(x_RC, lse_R, mass_R, peak_R, left, low_R, high_R)
        return low_R, high_R
    logits, lse, mass = x_RC.numpy(), lse_R.tolist(), mass_R.tolist()
    peak = None if peak_R is None else peak_R.numpy()
    for r in left.tolist():
        band = _band(logits[r], lse[r], mass[r], None if peak is None else peak[r])
        if band:
            low_R[r], high_R[r] = band
    return low_R, high_R


def _band(x_C: Numbers, lse: float, mass: float, peak: Any) -> tuple[float, float] | None:
    """Of one row."""
    import numpy as np
    import torch

    best = x_C.max()
    top = best if peak is None else peak
    for reach in REACHES:
        width = np.float32(reach)
        near_C = x_C >= top - width
        if top + width < best:
            near_C &= x_C <= top + width
        x_K = x_C[near_C]
        if peak is None:
            x_K = np.sort(x_K)[::-1].copy()
            away_K = -x_K
        else:
            away_K = np.abs(x_K - peak)
            whole_K = away_K <= width  # rounding at the edge: what was not looked at is farther away
            order = np.argsort(away_K)[: int(whole_K.sum())]
            away_K, x_K = away_K[order], x_K[order]
        running_K = (torch.from_numpy(x_K).double() - lse).exp_().add_(GRID).sub_(GRID).cumsum(0).numpy()
        last = int(np.searchsorted(running_K, mass))  # on the grid: the order of equals does not matter
        if last < len(x_K):
            kept = x_K[: int(np.searchsorted(away_K, away_K[last], side="right"))]
            return float(kept.min()), float(kept.max())
    return None


def _bands_on_device(
    x_RC: Tensor, lse_R: Tensor, mass_R: Tensor, peak_R: Tensor | None, left: Tensor, low_R: Tensor, high_R: Tensor
) -> None:
    """The same for all rows at once."""
    import torch

    size = x_RC.shape[1]
    for width in dict.fromkeys(min(width, size) for width in (SELECT, WIDER, size)):
        if not left.numel():
            return
        x_GC = x_RC if left.numel() == len(x_RC) else x_RC[left]
        away_GC = -x_GC if peak_R is None else (x_GC - peak_R[left, None]).abs()
        near_GK, index_GK = away_GC.sort(1) if width == size else away_GC.topk(width, dim=1, largest=False)
        share_GK = (x_GC.gather(1, index_GK).double() - lse_R[left, None]).exp_()
        reached_GK = share_GK.add_(GRID).sub_(GRID).cumsum(1) >= mass_R[left, None]
        found_G = reached_GK[:, -1]
        kept_GC = away_GC <= near_GK.gather(1, reached_GK.int().argmax(1)[:, None])
        low_G = torch.where(kept_GC, x_GC, math.inf).amin(1)
        high_G = torch.where(kept_GC, x_GC, -math.inf).amax(1)
        low_R[left] = torch.where(found_G, low_G, low_R[left])
        high_R[left] = torch.where(found_G, high_G, high_R[left])
        left = left[~found_G]


def within(x_RC: Tensor, low_R: Tensor, high_R: Tensor | None = None) -> Tensor:
    """x, and -inf outside the row's band. NaN is outside of nothing, so a NaN stays and is found."""
    import torch

    outside_RC = x_RC < low_R[:, None]
    if high_R is not None:
        outside_RC |= x_RC > high_R[:, None]
    return torch.where(outside_RC, -math.inf, x_RC)  # 2.9 ms at 32 x 49,152, masked_fill 4.7


def columns_within(x_C: Numbers, low: float, high: float) -> Numbers:
    """int64: the columns of one row (on the host) that stay, ascending; a NaN stays here too."""
    import numpy as np

    outside_C = x_C < np.float32(low)
    if high < math.inf:
        outside_C |= x_C > np.float32(high)
    return np.flatnonzero(~outside_C)


# -------------------------------------------------------------------------------------- feedback on the surprise
RUNAWAY_BITS = 28.0
"""2^18 tokens, more than any vocabulary, times 2^-28 is below 0.001: a cut at this surprise removes nothing."""


def steer(mu_R: Tensor, surprise_R: Tensor, tau_R: Tensor, eta_R: Tensor) -> Tensor:
    """mu - eta (S - tau), bits: Mirostat's controller (Basu et al., arXiv:2007.14966, algorithms 1 and 2)."""
    return mu_R - eta_R * (surprise_R - tau_R)


def mean_surprise(tau: float, eta: float, mu: float, count: int) -> float:
    """Bits per token after `count` steps of `steer` from mu_1 = 2 tau: mean S - tau = (mu_1 - mu) / (eta count)."""
    return tau + (2 * tau - mu) / (eta * count)


def exact(values: Sequence[float], like: Tensor) -> Tensor:
    """[R], as `like` (float64): options unrounded, where float32 would break an identity."""
    return like.new_tensor(values, dtype=like.dtype)
