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
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    Words = ndarray[Any, Any]
    Contend = Callable[[Words, Words, Words, Words, int], list[tuple[Words, Words]]]

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
def _table(size: int) -> Words:
    """uint32[size]: a scrambled word per token id, shared by all rows (lowbias32, Wellons 2018)."""
    import numpy as np

    x: Any = np.arange(size, dtype=np.uint32) * np.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def _keyed(table: Words, keys: Sequence[int], t: Sequence[int], stream: int) -> Words:
    """[R, C]: 31 bits for each word of the table [C] and each row."""
    return _mixed(table, _both(keys, t, stream)[:, None])


def _both(keys: Sequence[int], t: Sequence[int], stream: int) -> Words:
    """uint64 [R]: (k0, k1) of each row."""
    import numpy as np

    return np.array([derive(key, stream, step) for key, step in zip(keys, t, strict=True)], dtype=np.uint64)


def _mixed(table: Words, both: Words, out: Words | None = None, spare: Words | None = None) -> Words:
    """31 bits for each word of the table under its row's keys. out, spare: room, used again row after row."""
    import numpy as np

    x: Any = np.bitwise_xor(table, both.astype(np.uint32), out=out)
    if spare is None:
        spare = np.empty_like(x)
    x ^= np.right_shift(x, np.uint32(16), out=spare)
    x *= np.uint32(0x7FEB352D)
    x ^= np.right_shift(x, np.uint32(15), out=spare)
    x ^= (both >> np.uint64(32)).astype(np.uint32)
    x *= np.uint32(0x846CA68B)
    x ^= np.right_shift(x, np.uint32(16), out=spare)
    x &= np.uint32(0x7FFFFFFF)
    return x


def _gumbel(words: Words) -> Tensor:
    """float32: the words as noise, elementwise, so that a word has the same bits among few and among many.

    31 bits, small ones exact in float32; near 1 they round, so stay below 1 where E is infinite.
    """
    import torch

    u = torch.from_numpy(words.view("int32")).to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def gumbel(keys: Sequence[int], t: Sequence[int], size: int, stream: int = DRAW) -> Tensor:
    """float32 [R, size] of standard Gumbel noise; row r is keyed by (keys[r], stream, t[r])."""
    import numpy as np

    block = max(FEW // size, 1)  # a block of rows stays in the cache: numpy is then 6 times faster than torch on all
    starts = range(0, len(keys), block)
    words = [_keyed(_table(size), keys[r : r + block], t[r : r + block], stream) for r in starts]
    return _gumbel(np.concatenate(words) if words else np.empty((0, size), dtype=np.uint32))


FEW = 1 << 16
"""Words hashed at once."""

SMALL = 1024
"""Vocabularies up to this size get noise for every token: looking for those that can win would cost more."""

NEAR, LOUD = 8.0, 6.0
"""nats. A token can win only if its logit is near the row's largest, or its noise is loud; all others score less than
largest - NEAR + LOUD, and the best of the row less than that in at most one of 1,500 draws (then all are looked at)."""

LOUD_WORDS = int(-math.expm1(-math.exp(-LOUD)) * 2**31)
"""Words below make noise above LOUD: one of 400."""

ROUNDING = 0.01
"""nats; far above float32's rounding of noise and scores, up to the logits' size in LARGE."""

LARGE = 1e4


def draw(x_RV: Tensor, keys: Sequence[int], t: Sequence[int], contend: Contend | None = None) -> Tensor:
    """int64 [R]: argmax_v(x + gumbel), the lowest id on ties; a row with one finite logit yields it whatever the noise.

    Noise is made only for tokens that can win: same words, same bits, same token as with all of it. contend: a faster
    form of `contenders`.
    """
    import numpy as np
    import torch

    if x_RV.device.type != "cpu" or x_RV.shape[1] <= SMALL:
        return gumbel(keys, t, x_RV.shape[1]).to(x_RV.device).add_(x_RV).argmax(1)
    logits_RV, table = np.ascontiguousarray(x_RV.numpy()), _table(x_RV.shape[1])
    best_R, out = logits_RV.max(1), torch.zeros(len(keys), dtype=torch.int64)
    found = (contend or contenders)(logits_RV, best_R - np.float32(NEAR), table, _both(keys, t, DRAW), LOUD_WORDS)
    noise = _gumbel(np.concatenate([words for _, words in found])).numpy()
    start = 0
    for r, (ids, _) in enumerate(found):
        score = noise[start : start + len(ids)] + logits_RV[r, ids]
        start += len(ids)
        sure = score.max(initial=-math.inf) > best_R[r] - NEAR + LOUD + ROUNDING and abs(best_R[r]) < LARGE
        if not sure:
            out[r] = gumbel(keys[r : r + 1], t[r : r + 1], len(table))[0].add_(x_RV[r]).argmax()
        else:
            out[r] = int(ids[score.argmax()])
    return out


def draw_among(ids: Sequence[Words], x: Sequence[Words], size: int, keys: Sequence[int], t: Sequence[int]) -> Tensor:
    """int64 [R]: `draw` of rows of `size` tokens whose finite logits are x[r] at the ids[r], ascending."""
    import numpy as np
    import torch

    counts = [len(own) for own in ids]
    words = _mixed(_table(size)[np.concatenate(ids)], np.repeat(_both(keys, t, DRAW), counts))
    score = _gumbel(words).numpy() + np.concatenate(x)
    ends = np.cumsum(counts)
    best = [int(own[score[end - len(own) : end].argmax()]) for own, end in zip(ids, ends, strict=True)]
    return torch.tensor(best, dtype=torch.int64)


def contenders(x_RV: Words, low_R: Words, table: Words, both_R: Words, loud: int) -> list[tuple[Words, Words]]:
    """Of each row the ids of the tokens that can win, ascending, and their words: logit >= low or word < loud, and not
    -inf."""
    import numpy as np

    room = np.empty((2, len(table)), dtype=np.uint32)  # fresh memory for every row costs as much as the hashing
    out = []
    for x_V, low, both in zip(x_RV, low_R, both_R, strict=True):
        words = _mixed(table, both, *room)
        ids = np.flatnonzero((x_V >= low) | (words < loud))
        ids = ids[x_V[ids] > -math.inf]
        out.append((ids, words[ids]))
    return out


def coin(key: int, t: int, index: int = 0) -> float:
    """A uniform number in (0, 1) of the COIN stream, for samplers that toss one per step."""
    return ((derive(key, COIN, t, index) >> 11) + 0.5) / 2**53
