"""The sampler chain of many rows at once: stage i of all rows, grouped by method.

x_RV: float32 logits, R rows, V vocabulary, G rows of one group; -inf is "not allowed" and stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from raydecode.contracts import Columns, Sampler
from raydecode.engine.candidates import Candidates
from raydecode.engine.inside import Look
from raydecode.engine.rows import Row, StageRows
from raydecode.errors import RowError
from raydecode.numerics import normaliser

SamplerOf = Callable[[str], Sampler]
T = TypeVar("T")


Band = tuple[Tensor, Tensor | None]


@dataclass(slots=True)
class Observation:
    """A stage with state: its rows (indices) and their input logits, kept until the tokens are known.

    ids_GC: of the columns, -1 for none; None: the columns are the ids. lse_G: of x_GC, once somebody asked
    """

    stage: int
    method: Sampler
    index: list[int]
    x_GC: Tensor
    ids_GC: np.ndarray[Any, Any] | None = None
    lse_G: Tensor | None = None

    def normaliser(self) -> Tensor:
        if self.lse_G is None:
            self.lse_G = normaliser(self.x_GC)
        return self.lse_G

    def own_logp(self, live: list[int], token_G: Tensor) -> Tensor:
        """float64, on the host: of the `live` rows' tokens at the stage's own input; -inf where it was not there."""
        if self.ids_GC is None:
            logit_G = self.x_GC[live, token_G.to(self.x_GC.device)].double()
        else:
            here_GC = self.ids_GC[live] == token_G.numpy()[:, None]
            found = self.x_GC[live, torch.from_numpy(here_GC.argmax(1))].double()
            logit_G = found.where(torch.from_numpy(here_GC.any(1)), -math.inf)
        return (logit_G - self.normaliser()[live]).cpu()


def shape(
    x_RV: Tensor, rows: Sequence[Row], sampler: SamplerOf, look: Look | None = None
) -> tuple[Candidates, list[Observation]]:
    """Run every row's chain. A row whose method raises gets a fault; its logits are not read again.

    look: what the forward kept of the rows' nodes, for methods that need the model's inside.
    """
    left, observations = Candidates(x_RV), []
    for stage in range(max((len(row.spec.sampler) for row in rows), default=0)):
        groups: dict[str, list[int]] = {}
        for r, row in enumerate(rows):
            if stage < len(row.spec.sampler) and row.reason is None:
                groups.setdefault(row.spec.sampler[stage].name, []).append(r)
        for name, every in groups.items():
            method = sampler(name)
            for index in left.groups(every, getattr(method, "any_width", False)):
                seen = Observation(stage, method, index, *left.take(index))
                if method.columns:
                    observations.append(seen)
                group = [rows[r] for r in index]
                run = partial(_shape, seen, group, look.pick(index) if look else None, left.narrows)
                if left.narrows and getattr(method, "settles", False) and getattr(method, "keeps_best", False):
                    left.settle(index)  # these two laws leave nothing else
                    continue
                for part, found in _alone_if_it_raises(group, run):
                    members = [index[i] for i in part]
                    if isinstance(found, tuple):
                        left.cut(members, *found)
                    else:
                        left.put(members, found)
    return left, observations


def observe(observations: Sequence[Observation], rows: Sequence[Row], token_R: Tensor) -> None:
    """Fold the chosen tokens into the samplers' state columns, between the draw and the token's event."""
    for seen in observations:
        live = [i for i, r in enumerate(seen.index) if rows[r].reason is None]
        group = [rows[seen.index[i]] for i in live]
        if not group:
            continue
        token_G = token_R[[seen.index[i] for i in live]]
        own_logp_G = torch.full((len(live),), math.nan, dtype=torch.float64)
        if seen.method.needs.own_logp:
            own_logp_G = seen.own_logp(live, token_G)

        run = partial(_observe, seen.method, seen.stage, group, token_G, own_logp_G)
        for part, columns in _alone_if_it_raises(group, run):
            for name, column in columns.items():
                for i, value in zip(part, column.tolist(), strict=True):
                    state = group[i].sampler_state
                    state[seen.stage] = {**state[seen.stage], name: float(value)}


def _shape(seen: Observation, group: list[Row], look: Look | None, narrows: bool, part: list[int]) -> Tensor | Band:
    """What the method makes of the rows `part`: new logits [R, C], or the band that stays."""
    whole, method = len(part) == len(group), seen.method
    x = seen.x_GC if whole else seen.x_GC[part]
    rows = _stage_rows([group[i] for i in part], seen.stage, method, look.pick(part) if look else None, x.device)
    if whole:
        rows.keep_in(seen)
    band = getattr(method, "band", None) if narrows else None
    if band is not None:
        low_R, high_R = band(x, rows)
        _check_shape(seen, group, low_R, x[:, 0])
        _check_shape(seen, group, high_R if high_R is not None else low_R, x[:, 0])
        return low_R, high_R
    y = method.shape(x, rows)
    _check_shape(seen, group, y, x)
    return y


def _check_shape(seen: Observation, group: list[Row], y: Tensor, like: Tensor) -> None:
    if y.shape != like.shape or y.dtype != like.dtype:
        got, want = f"{y.dtype} {list(y.shape)}", f"{like.dtype} {list(like.shape)}"
        name = group[0].spec.sampler[seen.stage].name
        raise RowError("sampler", "BadShape", f"{name} returned {got}, its input was {want}")


def _observe(
    method: Sampler, stage: int, group: list[Row], token_G: Tensor, own_logp_G: Tensor, part: list[int]
) -> Columns:
    columns = method.observe(_stage_rows([group[i] for i in part], stage, method), token_G[part], own_logp_G[part])
    if set(columns) != set(method.columns) or any(column.shape != (len(part),) for column in columns.values()):
        want = f"{', '.join(method.columns)}, each [{len(part)}]"
        raise RowError("sampler", "BadColumns", f"{group[0].spec.sampler[stage].name} owes the columns {want}")
    return columns


def _stage_rows(
    rows: list[Row], stage: int, method: Sampler, look: Look | None = None, device: torch.device | None = None
) -> StageRows:
    cards, states = [row.spec.sampler[stage] for row in rows], [row.sampler_state[stage] for row in rows]
    return StageRows(rows, cards, states, look, method.needs, device)


def _alone_if_it_raises(rows: list[Row], call: Callable[[list[int]], T]) -> list[tuple[list[int], T]]:
    """call(all indices), or, where that raises, row by row, so that only the guilty row ends."""
    every = list(range(len(rows)))
    try:
        return [(every, call(every))]
    except Exception as error:  # a method's code may raise anything; its row pays, not the batch
        if len(rows) == 1:
            rows[0].fail("sampler", error)
            return []
    out: list[tuple[list[int], T]] = []
    for i in every:
        try:
            out.append(([i], call([i])))
        except Exception as error:
            rows[i].fail("sampler", error)
    return out
