"""Counter-based noise: it exists before the logits do, in every batch, after every restart.

A row draws its token at output index t as  argmax_v( shaped_logit[v] + gumbel(key, stream, t, v) ).
The Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv:1411.0030) makes that an exact draw from
softmax(shaped_logit); a keyed hash in place of a generator makes it a function of (key, stream, t, v) alone. Drafters
that use the same noise on their own logits agree with the target with probability >= (1-TV)/(1+TV) (Daliri et al.,
arXiv:2408.07978).

    word(v)  = table[v] xor k0, one multiply-shift round, xor k1, a second round, 31 bits;  (k0, k1) = H(key, stream, t)
    E(v)     = -log1p(-(word + 0.5) / 2^31)      exponential; the winners are small E, where float32 is dense
    gumbel   = -log E(v)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DRAW, COIN = 0, 1
"""Streams of one key: the token draw; coins of samplers that need them (XTC)."""

_M64 = (1 << 64) - 1


def mix(x: int) -> int:
    """One step of splitmix64 (Steele et al., OOPSLA 2014): a bijection of 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & _M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _M64
    return x ^ (x >> 31)


def derive(key: int, *parts: int) -> int:
    """A 64-bit child key; the order of `parts` matters."""
    for part in parts:
        key = mix(key ^ mix(part & _M64))
    return key


def hash64(data: bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=4)
def _table(size: int) -> Tensor:
    """int32[size]: a scrambled word per token id, shared by all rows (lowbias32, Wellons 2018)."""
    import torch

    x = (torch.arange(size, dtype=torch.int64) * 0x9E3779B1) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _words(keys: Sequence[int], t: Sequence[int], stream: int) -> tuple[Tensor, Tensor]:
    """(k0, k1) of every row as int32 [R]."""
    import torch

    words = [derive(key, stream, step) for key, step in zip(keys, t, strict=True)]
    low = torch.tensor([_signed(w & 0xFFFFFFFF) for w in words], dtype=torch.int32)
    high = torch.tensor([_signed(w >> 32) for w in words], dtype=torch.int32)
    return low, high


def _exponential_(x: Tensor, high: Tensor) -> Tensor:
    """Table words, already xored with k0, to exponential noise; int32 in place.

    Multiplication wraps, and a logical right shift is an arithmetic one with a mask.
    """
    import torch

    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x ^= high
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    x &= 0x7FFFFFFF  # 31 bits, small ones exact in float32; near 1 they round, so stay below 1 where E is infinite
    u = x.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_()


def gumbel(keys: Sequence[int], t: Sequence[int], size: int, stream: int = DRAW) -> Tensor:
    """float32 [R, size] of standard Gumbel noise; row r is keyed by (keys[r], stream, t[r])."""
    low, high = _words(keys, t, stream)
    return _exponential_(_table(size)[None] ^ low[:, None], high[:, None]).log_().neg_()


def draw(x_RV: Tensor, keys: Sequence[int], t: Sequence[int]) -> Tensor:
    """int64 [R]: argmax_v(x + gumbel), the lowest id on ties; a row with one finite logit yields it whatever the noise.

    Noise is made for kept tokens only where a truncation left few of them: same words, same bits, same token.
    """
    import torch

    size = x_RV.shape[1]
    kept_RV = x_RV > float("-inf")
    row, token = kept_RV.nonzero(as_tuple=True)
    if row.numel() * 4 > kept_RV.numel():
        return gumbel(keys, t, size).add_(x_RV).argmax(1)
    low, high = _words(keys, t, DRAW)
    noise = _exponential_(_table(size)[token] ^ low[row], high[row]).log_().neg_()
    score = noise.add_(x_RV[row, token])
    best_R = score.new_full((x_RV.shape[0],), float("-inf")).scatter_reduce_(0, row, score, "amax")
    wins = (score == best_R[row]).nonzero()[:, 0].flip(0)  # in row order, so the last write below is the lowest id
    out = torch.zeros(x_RV.shape[0], dtype=torch.int64)
    for r, v in zip(row[wins].tolist(), token[wins].tolist(), strict=True):
        out[r] = v
    return out


def coin(key: int, t: int, index: int = 0) -> float:
    """A uniform number in (0, 1) of the COIN stream, for samplers that toss one per step."""
    return ((derive(key, COIN, t, index) >> 11) + 0.5) / 2**53
