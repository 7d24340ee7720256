"""The sampler chain of many rows at once: stage i of all rows, grouped by method.

x_RV: float32 logits, R rows, V vocabulary, G rows of one group; -inf is "not allowed" and stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from raydecode.contracts import Columns, Sampler
from raydecode.engine.inside import Look
from raydecode.engine.rows import Row, StageRows
from raydecode.errors import RowError

SamplerOf = Callable[[str], Sampler]
T = TypeVar("T")


@dataclass(slots=True)
class Observation:
    """A stage with state: its rows (indices) and their input logits, kept until the tokens are known."""

    stage: int
    method: Sampler
    index: list[int]
    x_GV: Tensor


def shape(
    x_RV: Tensor, rows: Sequence[Row], sampler: SamplerOf, look: Look | None = None
) -> tuple[Tensor, list[Observation]]:
    """Run every row's chain. A row whose method raises gets a fault; its logits are not read again.

    look: what the forward kept of the rows' nodes, for methods that need the model's inside.
    """
    observations: list[Observation] = []
    own = False  # whether x_RV is a copy that nobody else holds: then groups are written back in place
    for stage in range(max((len(row.spec.sampler) for row in rows), default=0)):
        groups: dict[str, list[int]] = {}
        for r, row in enumerate(rows):
            if stage < len(row.spec.sampler) and row.reason is None:
                groups.setdefault(row.spec.sampler[stage].name, []).append(r)
        for name, index in groups.items():
            method, group = sampler(name), [rows[r] for r in index]
            whole = len(index) == len(rows)
            own = own and not whole
            x_GV = x_RV if whole else x_RV[index]
            if method.columns:
                observations.append(Observation(stage, method, index, x_GV))

            run = partial(_shape, method, stage, group, x_GV, look.pick(index) if look else None)
            for part, y in _alone_if_it_raises(group, run):
                if whole and len(part) == len(rows):
                    x_RV = y
                else:
                    x_RV, own = (x_RV if own else x_RV.clone()), True
                    x_RV.index_copy_(0, torch.tensor([index[i] for i in part], device=x_RV.device), y)
    return x_RV, observations


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
            x_GV = seen.x_GV[live].double()
            chosen_G1 = token_G[:, None].to(x_GV.device)
            own_logp_G = (x_GV.gather(1, chosen_G1)[:, 0] - x_GV.logsumexp(1)).cpu()

        run = partial(_observe, seen.method, seen.stage, group, token_G, own_logp_G)
        for part, columns in _alone_if_it_raises(group, run):
            for name, column in columns.items():
                for i, value in zip(part, column.tolist(), strict=True):
                    state = group[i].sampler_state
                    state[seen.stage] = {**state[seen.stage], name: float(value)}


def _shape(method: Sampler, stage: int, group: list[Row], x_GV: Tensor, look: Look | None, part: list[int]) -> Tensor:
    x = x_GV if len(part) == len(group) else x_GV[part]
    y = method.shape(
        x, _stage_rows([group[i] for i in part], stage, method, look.pick(part) if look else None, x.device)
    )
    if y.shape != x.shape or y.dtype != x.dtype:
        got, want = f"{y.dtype} {list(y.shape)}", f"{x.dtype} {list(x.shape)}"
        name = group[0].spec.sampler[stage].name
        raise RowError("sampler", "BadShape", f"{name} returned {got}, its input was {want}")
    return y


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
