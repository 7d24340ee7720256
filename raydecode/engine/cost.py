"""What one ragged forward costs on this device, measured: the curve by which `auto` sizes its trees.

    seconds(rows, tokens) = (f(tokens) + a * (rows - 1)) * level(rows) * residual(rows, tokens)

f is measured on one row with 1, 2, 4, ... new tokens, linear in between and beyond (a call is one flat product over all
tokens, whosever they are); a is what a further row costs besides its tokens, least squares over calls of several rows
with one token each. f is kept as it was found: some kernels make 2 tokens dearer than 8, and then 2 must not be chosen.

While the engine runs, each call without prompt tokens corrects this. Calls of plain decoding (tokens = rows) move
`level`, the others `residual`, against the level of the last plain call: a machine that others slow down slows both.
A residual is a line over the logarithm of tokens, 0 at plain decoding and level behind the last point that was seen, so
that a slope which was measured wrong is wrong once. Residuals fade with every plain call, so that a dear tree is tried
again; `stale` asks for a plain call when the level is old. Only ratios of this curve decide anything, and a wrong curve
costs time, never text.

Cost: REPEATS calls per point after one that warms up, at most about LIMIT_S seconds in all, once per process and kind
of lane (`once`). What the logits behind a prompt's tokens take is measured where a drafter learns from them (`told`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Lane, SourceLane
from raydecode.tree import TokenTree

TOKENS = (1, 2, 4, 8, 16, 32, 64)
"""New tokens of one row, the cheapest first, each foretold by those before: where a forward takes long, the last are
left out. 8 and 16 before 2 and 4 left a busy machine without the latter, which then were taken for dear."""
ROWS = (4, 16, 32)
"""Rows of one token each."""
TELLS, SOURCE = 32, 32
"""Tokens of the prompt by which `told` measures, and of what an encoder has read when its decoder is measured."""
FAR = (128, 256)
"""Tokens that count in batches, where calls are short enough to look there: accelerators."""
REPEATS = 2
LIMIT_S = 1.5

STEP = 0.2
"""Part of a surprise that one call moves the level by; a residual moves by half of it, and by more at first."""
JUMP = 0.5
"""Most that one call counts for, in nats: a pause of the machine says nothing. At first more, as nothing is known."""
FADE = 0.998
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96)
MOST_AGE = 16
OLD = 64
"""Calls with drafts after which a plain one is due."""


@dataclass(slots=True)
class CostCurve:
    """tokens_N, seconds_N: f, rising tokens; row_s: a, seconds. See the module."""

    tokens_N: Sequence[int]
    seconds_N: Sequence[float]
    row_s: float = 0.0
    level: dict[int, float] = field(default_factory=dict)
    residual: dict[int, dict[int, list[float]]] = field(default_factory=dict)
    """rows -> point -> nats, calls that moved it"""
    drafted: dict[int, int] = field(default_factory=dict)
    """rows -> calls with drafts since the last plain one"""
    surprise: dict[int, float] = field(default_factory=dict)
    fixed: bool = False
    """Tabulated: how long calls really take is not asked."""
    told_s: float | None = None
    """Seconds of the logits behind a token of a prompt, besides those of reading it; None: not measured"""
    _most: dict[tuple[int, int], int] = field(default_factory=dict)
    """Answers of `most`, kept for MOST_AGE calls."""
    _age: int = 0

    def __call__(self, rows: int, tokens: int) -> float:
        """Seconds of a call of `tokens` new tokens over `rows` rows, as they are now."""
        base = (self._base(tokens) + self.row_s * (rows - 1)) * math.exp(self.level.get(_size(rows), 0.0))
        if tokens > rows and self.residual.get(_size(rows)):
            base *= math.exp(float(np.interp(2 * math.log2(tokens), *self._line(rows))))
        return base

    def table(self, rows: int, tokens: int, more: int) -> list[float]:
        """Seconds of calls of `tokens` to `tokens` + `more` new tokens: entry i has i more."""
        size, at_N = _size(rows), np.arange(tokens, tokens + more + 1)
        base_N = np.interp(at_N, self.tokens_N, self.seconds_N)
        if at_N[-1] > self.tokens_N[-1]:
            base_N += np.maximum(at_N - self.tokens_N[-1], 0) * self._slope()
        base_N = (base_N + self.row_s * (rows - 1)) * math.exp(self.level.get(size, 0.0))
        if self.residual.get(size):
            base_N *= np.exp(np.interp(2 * np.log2(at_N), *self._line(rows)))
        return base_N.tolist()

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A call that took so long; it had no prompt tokens."""
        if self.fixed or seconds <= 0 or rows < 1:
            return
        self._age += 1
        if self._age >= MOST_AGE:
            self._age = 0
            self._most.clear()
        size = _size(rows)
        points = self.residual.setdefault(size, {})
        error = math.log(seconds / self(rows, tokens))
        if tokens <= rows:
            self.level[size] = self.level.get(size, 0.0) + STEP * min(max(error, -JUMP), JUMP)
            self.drafted[size], self.surprise[size] = 0, 0.0
            for point in points.values():
                point[0] *= FADE
            return
        line = self._line(rows)
        near = _points(tokens)
        whole = sum(weight**2 for _, weight in near)  # so that the line between them moves by the whole of it
        for at, weight in near:
            if at > line[0][0]:
                point = points.setdefault(at, [float(np.interp(at, *line)), 0])
                most = 4 * JUMP if point[1] < 3 else JUMP
                part = max(0.5 / (1 + point[1]), STEP / 2) * weight / whole
                point[0] += part * min(max(error, -most), most)
                point[1] += 1
        self.drafted[size] = self.drafted.get(size, 0) + 1
        self.surprise[size] = 0.8 * self.surprise.get(size, 0.0) + 0.2 * min(max(error, -JUMP), JUMP)

    def stale(self, rows: int) -> bool:
        """A plain call is due: the last is long ago, or calls with drafts have become dearer or cheaper since."""
        size = _size(rows)
        since = self.drafted.get(size, 0)
        return since >= OLD or (since >= OLD // 8 and abs(self.surprise.get(size, 0.0)) > 0.2)

    def most(self, rows: int, tokens: int, chance: float = 0.95) -> int:
        """Drafted tokens per row beyond which nothing pays: not even a chain whose every token is kept with `chance`.

        tokens: new tokens of the call without drafts
        """
        if (rows, tokens) in self._most:
            return self._most[rows, tokens]
        price, most, at, before = self(rows, rows) / rows, 0, 0, self(rows, tokens)
        for n in SIZES:
            now = self(rows, tokens + n * rows)
            if (now - before) / ((n - at) * rows) <= chance**n * price:
                most = n
            before, at = now, n
        self._most[rows, tokens] = most
        return most

    def ratios(self) -> list[tuple[int, float]]:
        """(tokens, cost over one token) of one row, as measured at the start."""
        return [(n, s / self.seconds_N[0]) for n, s in zip(self.tokens_N, self.seconds_N, strict=True)]

    def _base(self, tokens: int) -> float:
        """f."""
        n_N, s_N = self.tokens_N, self.seconds_N
        if tokens >= n_N[-1]:
            return s_N[-1] + (tokens - n_N[-1]) * self._slope() if tokens > n_N[-1] else s_N[-1]
        right = max(bisect.bisect_left(n_N, tokens), 1)
        part = (tokens - n_N[right - 1]) / (n_N[right] - n_N[right - 1])
        return s_N[right - 1] + part * (s_N[right] - s_N[right - 1])

    def _slope(self) -> float:
        """Seconds of a token beyond the last point: as between the last point and half of it, and never negative."""
        last = self.tokens_N[-1]
        if last == self.tokens_N[0]:
            return self.seconds_N[0]  # one point: a token more is a call more
        half = max(last // 2, self.tokens_N[0])
        return max((self.seconds_N[-1] - self._base(half)) / (last - half), 0.0)

    def _line(self, rows: int) -> tuple[list[float], list[float]]:
        """Points and nats of the residual, 0 at plain decoding."""
        start = 2 * math.log2(rows)
        points = [(at, nats) for at, (nats, _) in sorted(self.residual.get(_size(rows), {}).items()) if at > start]
        return [start, *(at for at, _ in points)], [0.0, *(nats for _, nats in points)]


def measure(run: Callable[[int, int], float], slots: int, longest: int, limit_s: float = LIMIT_S) -> CostCurve | None:
    """The curve of a device. run(rows, tokens of each) makes one call and says its seconds; rows <= slots and tokens <=
    longest. A point is left out when it would go beyond the limit, as the points before it foretell, or says inf. None
    when there is no point for one token."""
    spent, found, beside = 0.0, dict[int, float](), dict[int, float]()

    def point(rows: int, tokens: int, foretold: float) -> float | None:
        nonlocal spent
        if found and spent + (REPEATS + 1) * foretold > limit_s:
            return None
        timed: list[float] = []
        while len(timed) <= REPEATS and not (timed and not found and spent > limit_s):
            timed.append(run(rows, tokens))  # of a forward that takes seconds one look has to do
            if math.isinf(timed[-1]):
                return None
            spent += timed[-1]
        return min(timed[1:] or timed)

    def look(sizes: Sequence[int]) -> None:
        for tokens in (n for n in sizes if n <= longest):
            seconds = point(1, tokens, _foretold(found, tokens))
            if seconds is not None:
                found[tokens] = seconds

    look(TOKENS)
    for rows in (n for n in ROWS if n <= slots):
        seconds = point(rows, 1, _foretold(found, rows))
        if seconds is not None:
            beside[rows] = seconds
    look(FAR)
    if 1 not in found:
        return None
    n_N = sorted(found)
    curve = CostCurve(n_N, [found[n] for n in n_N])
    if beside:
        over = {rows: seconds - curve(1, rows) for rows, seconds in beside.items()}
        curve.row_s = max(sum((n - 1) * s for n, s in over.items()) / sum((n - 1) ** 2 for n in over), 0.0)
    return curve


_measured: dict[Hashable, CostCurve] = {}


def once(key: Hashable, make: Callable[[], CostCurve | None]) -> CostCurve | None:
    """What was measured under this key in this process, else what `make` measures now; None as a key: always now.

    Every caller gets a curve of its own, as it was measured: corrections are of the engine that made them.
    """
    found = _measured.get(key) or make()
    if found is None or key is None:
        return found
    _measured[key] = found
    return CostCurve(found.tokens_N, found.seconds_N, found.row_s)


def told(tells: Callable[[int, int], float], reads: Callable[[int, int], float], longest: int) -> float:
    """Seconds of the logits behind a token of a prompt: a call with all of them against one with the last."""
    count = min(TELLS, longest)
    most, least = (min(run(1, count) for _ in range(REPEATS + 1)) for run in (tells, reads))
    return max(most - least, 0.0) / (count - 1) if count > 1 and math.isfinite(most) else 0.0


def rehearsal(
    lane: Lane, slots: Sequence[int], clock: Callable[[], float], *, reads: bool = False
) -> Callable[[int, int], float]:
    """Calls of a lane for `measure`, in slots that nobody holds; inf where the cache has no room for them.

    reads: as a prompt is read, with logits behind the last token alone; else as a draft is verified
    """

    def run(rows: int, tokens: int) -> float:
        some = slots[:rows]
        before, tree = ((0,) * (tokens - 1), TokenTree.root(0)) if reads else ((), TokenTree.chain([0] * tokens))
        chunks = [Chunk(slot, 0, before, tree) for slot in some]
        try:
            if not all(lane.reserve(slot, 0, tokens) for slot in some):
                return math.inf
            for slot in some if hasattr(lane, "starts") else ():  # an encoder-decoder: encoded once per row, untimed
                cast(SourceLane, lane).read(slot, (0,) * min(SOURCE, lane.context))
            began = clock()
            lane.forward(chunks, Needs()).logits_MV[0, 0].item()  # a device answers when it is done
            return clock() - began
        finally:
            for slot in some:
                lane.release(slot)

    return run


def _foretold(found: dict[int, float], tokens: int) -> float:
    """Seconds of a call that was not made yet: along the line through those that were."""
    if not found:
        return 0.0
    n_N = sorted(found)
    return CostCurve(n_N, [found[n] for n in n_N])(1, tokens)


def _size(rows: int) -> int:
    """Batch sizes that share their corrections: powers of two, the nearest below."""
    return rows.bit_length() - 1


def _points(tokens: int) -> list[tuple[int, float]]:
    """The two nearest of the points 2**(i / 2), and their weights."""
    at = 2 * math.log2(tokens)
    low = math.floor(at)
    return [(low, 1 - (at - low)), (low + 1, at - low)]
