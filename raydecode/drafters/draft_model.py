"""Draft model: a smaller model writes a few tokens ahead (Leviathan et al., arXiv:2211.17192).

The draft is a chain: at each node the model's logits go through the row's own constraint, sampler chain and keyed
noise, and what they pick is drafted. The target then picks with the same noise, so a sampled row agrees with
probability at least (1 - TV) / (1 + TV) (drafter-invariant coupling, Daliri et al., arXiv:2408.07978), and a greedy row
where the two models' likeliest tokens are one. The papers' rejection sampling is not needed and not done.

    stop before the next token   when the model's likeliest token there had less than `confidence`, at an end of text,
                                 after `depth` tokens, or where a token has no partner in the target's vocabulary
    est(node)                    the probability of the likeliest token there

The model is a lane of the engine: loaded by the job with its own cache, which keeps what was accepted; it may have
another vocabulary (`engine.spelling`). Transformers' stop is 0.4; one token per round, all rows together.

Changes the text: never. State: none; the lane's cache, the same number of tokens as the job's. Cost: one forward of the
model per drafted token; it pays where that costs less than the share of the drafts that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree


@registry.register("drafters", paper="arXiv:2211.17192", exact=True, loads=True)
class DraftModel:
    """Draft model: a smaller model drafts a chain, drawn with the row's own noise."""

    class Options(registry.Options):
        model: str = Field(
            min_length=1, description="source of the smaller model, as in the section `model`", examples=["toy"]
        )
        depth: int = Field(default=5, ge=1, le=32, description="most tokens drafted per step", examples=[5, 2])
        confidence: float = Field(
            default=0.4,
            ge=0,
            le=1,
            description="least probability of the likeliest token to go on",
            examples=[0.4, 0.0],
        )

    needs = Needs()
    scope = "row"

    @staticmethod
    def needs_of(options: Given, sites: Sequence[str]) -> Needs:
        return Needs(lanes=(options["model"],))

    def open_shared(self) -> None:
        return None

    def open(self, row: RowView, options: Given) -> int:
        return 0

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: None, options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        paths: list[list[int]] = [[] for _ in rows]
        est: list[list[float]] = [[1.0] for _ in rows]
        going = [r for r, budget in enumerate(budgets) if budget > 0]
        while going:
            items = tuple((rows[r].id, tuple(paths[r])) for r in going)
            outs = yield Forward(options["model"], items, choose=1)
            still = []
            for r, out in zip(going, outs, strict=True):
                sure = math.exp(out.top_logp[0]) if out.top_logp else 0.0
                if not out.choice or sure < options["confidence"]:
                    continue
                paths[r].append(out.choice[0])
                est[r].append(sure)
                if len(paths[r]) < min(budgets[r], options["depth"]) and out.choice[0] not in rows[r].ends:
                    still.append(r)
            going = still
        return [
            TokenTree((row.pending, *path), tuple(range(-1, len(path))), tuple(sure))
            for row, path, sure in zip(rows, paths, est, strict=True)
        ]

    def observe(self, records: Sequence[StepRecord], shared: None, options: Given) -> list[Any]:
        return [record.state for record in records]
