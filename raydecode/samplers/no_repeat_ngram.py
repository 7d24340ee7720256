"""No repeated n-grams (Paulus et al., arXiv:1705.04304, section 2.5): forbid what would complete an n-gram again.

With h the ids of prompt and output: forbid h[i+n-1] wherever h[i:i+n-1] equals the last n-1 ids. n = 1 forbids every
token used before. Where that would leave no token at all, the ban is lifted for this token.
Changes the distribution: yes. State: none (history). Cost: one comparison of the history with its own end per row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, SamplerRows, StateColumns


@registry.register("samplers", paper="arXiv:1705.04304")
class NoRepeatNgram:
    """Forbid tokens that would complete an n-gram of prompt or output a second time."""

    class Options(registry.Options):
        n: int = Field(default=3, ge=1, le=1000, description="length of an n-gram, in tokens")

    needs = Needs(history=True)
    columns: StateColumns = {}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        shaped = x_RC.clone()
        for r, (n, history) in enumerate(zip(rows.option("n").tolist(), rows.history_R, strict=True)):
            banned = torch.from_numpy(_completions(history.numpy(), int(n)))
            if banned.numel():
                shaped[r, banned] = -math.inf
                if bool(torch.isneginf(shaped[r]).all()):
                    shaped[r] = x_RC[r]
        return shaped


def _completions(history: np.ndarray, n: int) -> np.ndarray:
    """The ids that followed earlier occurrences of the last n - 1 ids."""
    if len(history) < n:
        return history[:0]
    grams_IN = np.lib.stride_tricks.sliding_window_view(history, n)
    same_I = (grams_IN[:, :-1] == history[len(history) - n + 1 :]).all(1)
    return np.unique(grams_IN[same_I, -1])
