"""DRY, don't repeat yourself (p-e-w 2024, text-generation-webui pull request 5677): the longer the loop, the dearer.

For every token v that followed an earlier occurrence of the text's end: L(v) = the length of the longest such match, in
tokens. Where L >= allowed_length:  x[v] - multiplier * base^(L - allowed_length). Prompt and output count, the last
`window` ids of them. A match does not run over a breaker, and a breaker is never penalised. multiplier = 0: identity.
Changes the distribution: yes. State: none (history). Cost: one comparison of the history per token of the match.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns

LONGEST = 50
"""Where a match stops counting: base^48 is beyond any logit, and a text in a loop is one long match."""


@registry.register("samplers", paper="text-generation-webui, 2024")
class Dry:
    """Make a token less likely, the longer the repetition is that it would go on with."""

    class Options(registry.Options):
        multiplier: float = Field(default=0.8, ge=0, le=100, description="nats at the allowed length; 0 is off")
        base: float = Field(default=1.75, ge=1, le=4, description="factor for each further token of the match")
        allowed_length: int = Field(default=2, ge=1, le=LONGEST, description="matches shorter than this are free")
        window: int = Field(default=0, ge=0, description="how many of the last ids are searched; 0: all")
        breakers: tuple[int, ...] = Field(default=(), description="ids that no match runs over, such as line ends")

    needs = Needs(history=True)
    columns: StateColumns = {}
    identity = {"multiplier": 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped = x_RC.clone()
        names = ("multiplier", "base", "allowed_length", "window", "breakers")
        columns = zip(*(rows.given(name) for name in names), strict=True)
        for r, (history, own) in enumerate(zip(rows.history_R, columns, strict=True)):
            multiplier, base, allowed, window, breakers = own
            ids, length = matches(history.numpy()[-window:], breakers)
            long = length >= allowed
            nats = multiplier * np.power(float(base), length[long] - allowed)
            shaped[r, torch.from_numpy(ids[long])] -= torch.from_numpy(nats).to(x_RC)
        return shaped


def matches(history: np.ndarray, breakers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that followed an earlier occurrence of the history's end, ascending, and the longest match before each."""
    end = len(history) - 1
    last_I = np.flatnonzero(history[:end] == history[end]) if end > 0 else history[:0]  # where the match would end
    broken = np.isin(history[max(end - LONGEST + 1, 0) :], breakers)[::-1]  # the end's own breakers, the last id first
    last_I = last_I[~np.isin(history[last_I + 1], breakers)]
    length_I, alive = np.zeros(len(last_I), dtype=np.int64), np.arange(len(last_I))
    for back in range(min(LONGEST, end)):
        if broken[back]:
            break
        alive = alive[last_I[alive] >= back]
        alive = alive[history[last_I[alive] - back] == history[end - back]]
        if not len(alive):
            break
        length_I[alive] = back + 1
    ids, where = np.unique(history[last_I + 1], return_inverse=True)
    longest = np.zeros(len(ids), dtype=np.int64)
    np.maximum.at(longest, where, length_I)
    return ids, longest
