"""What the chains have left of every row: its whole width, or the few columns that can still be chosen.

On the host a stage that keeps a band of logits (`Sampler.band`) narrows its rows instead of writing -inf over 49,152
columns; later stages and the draw then look at what is left. Narrowed is full, bit for bit (laws `band_is_its_shape`
and `candidates_are_enough`, and the engine's own test). A stage that has to see every column gets the row widened.
Elsewhere than on the host rows stay whole: picking columns would wait for the device, row by row.

Legend: R rows, V vocabulary, G rows of one group, C columns of the widest among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raydecode.numerics import columns_within, within
from raydecode.randomness import SMALL, draw, draw_among

if TYPE_CHECKING:
    from raydecode.randomness import Contend

SHARE = 4
"""A row is narrowed when at most this part (one of SHARE) of it is left."""


@dataclass(frozen=True, slots=True)
class Few:
    """The columns of one row that are left: ids ascending, and their logits."""

    ids: np.ndarray[Any, Any]
    x: np.ndarray[Any, Any]


class Candidates:
    """x_RV: float32; the rows that are not in `few` are whole there. It is written to only once it is a copy."""

    def __init__(self, x_RV: Tensor) -> None:
        self.x_RV = x_RV
        self.few: dict[int, Few] = {}
        self.narrows = x_RV.device.type == "cpu" and x_RV.shape[1] > SMALL
        self._own = False

    # ------------------------------------------------------------------ what a stage is given
    def groups(self, index: list[int], any_width: bool) -> list[list[int]]:
        """Rows that one call can take: whole ones and narrow ones go separately."""
        if not any_width:
            for r in index:
                self._widen(r)
        parts = [r for r in index if r not in self.few], [r for r in index if r in self.few]
        return [part for part in parts if part]

    def take(self, index: list[int]) -> tuple[Tensor, np.ndarray[Any, Any] | None]:
        """[G, C] of a group, and the ids of its columns, -1 behind a row's last; None: the columns are the ids."""
        if index[0] in self.few:
            few = [self.few[r] for r in index]
            shape = len(few), max(len(one.ids) for one in few)
            ids_GC, x_GC = np.full(shape, -1, dtype=np.int64), np.full(shape, -math.inf, dtype=np.float32)
            for g, one in enumerate(few):
                ids_GC[g, : len(one.ids)], x_GC[g, : len(one.ids)] = one.ids, one.x
            return torch.from_numpy(x_GC), ids_GC
        if len(index) == len(self.x_RV):
            self._own = False  # somebody else holds it from now on
            return self.x_RV, None
        return self.x_RV[index], None

    # ------------------------------------------------------------------ what it leaves
    def put(self, index: list[int], y_GC: Tensor) -> None:
        """New logits in the same columns."""
        if index[0] in self.few:
            for r, y_C in zip(index, y_GC.numpy(), strict=True):
                one = self.few[r]
                self.few[r] = Few(one.ids, y_C[: len(one.ids)])
        elif len(index) == len(self.x_RV):
            self.x_RV, self._own = y_GC, False
        else:
            self._copy().index_copy_(0, torch.tensor(index, device=y_GC.device), y_GC)

    def cut(self, index: list[int], low_G: Tensor, high_G: Tensor | None) -> None:
        """Keep what lies in each row's band."""
        highs = [math.inf] * len(index) if high_G is None else high_G.tolist()
        rows, size = self.x_RV.numpy(), self.x_RV.shape[1]
        for r, low, high in zip(index, low_G.tolist(), highs, strict=True):
            if math.isnan(low) or (low == -math.inf and high == math.inf):
                continue  # a NaN is found later; it is outside of nothing
            one = self.few.get(r)
            columns = columns_within(rows[r] if one is None else one.x, low, high)
            if one is not None:
                self.few[r] = Few(one.ids[columns], one.x[columns])
            elif SHARE * len(columns) <= size:
                self.few[r] = Few(columns, rows[r][columns])
            else:
                x_RV = self._copy()
                rows = x_RV.numpy()
                x_RV[r] = within(x_RV[r : r + 1], torch.tensor([low]), torch.tensor([high]))[0]

    def settle(self, index: list[int]) -> None:
        """Keep the likeliest column of each row, the lowest id on ties."""
        rows = self.x_RV.numpy()
        for r in index:
            one = self.few.get(r)
            x_C = rows[r] if one is None else one.x
            best = int(x_C.argmax())
            id = best if one is None else one.ids[best]
            self.few[r] = Few(np.array([id]), x_C[best : best + 1].copy())  # x_RV may be written to

    # ------------------------------------------------------------------ the end of the chain
    def best_R(self) -> Tensor:
        """[R]: each row's largest logit; NaN where there is one."""
        if not self.few:
            return self.x_RV.amax(1)
        best_R = self.x_RV.new_empty(len(self.x_RV))
        for part in self.groups([*range(len(best_R))], any_width=True):
            best_R[part] = self.take(part)[0].amax(1)
        return best_R

    def draw(self, keys: Sequence[int], t: Sequence[int], contend: Contend | None = None) -> Tensor:
        """int64 [R]: see `randomness.draw`."""
        if not self.few:
            return draw(self.x_RV, keys, t, contend)
        token_R = torch.zeros(len(keys), dtype=torch.int64)
        for part in self.groups([*range(len(keys))], any_width=True):
            own, at = [keys[r] for r in part], [t[r] for r in part]
            if part[0] in self.few:
                few = [self.few[r] for r in part]
                token_R[part] = draw_among(
                    [one.ids for one in few], [one.x for one in few], self.x_RV.shape[1], own, at
                )
            else:
                token_R[part] = draw(self.x_RV[part], own, at, contend)
        return token_R

    def whole(self) -> Tensor:
        """float32 [R, V] with -inf wherever a column was dropped."""
        for r in [*self.few]:
            self._widen(r)
        return self.x_RV

    def _widen(self, r: int) -> None:
        one = self.few.pop(r, None)
        if one is not None:
            x_V = self._copy()[r]
            x_V.fill_(-math.inf)
            x_V[torch.from_numpy(one.ids)] = torch.from_numpy(one.x)

    def _copy(self) -> Tensor:
        if not self._own:
            self.x_RV, self._own = self.x_RV.clone(), True
        return self.x_RV
