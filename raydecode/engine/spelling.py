"""One model's token ids in another's vocabulary, by their bytes; made once per pair of models.

    there   a target token as the lane's ids: the one with the same bytes, else the longest pieces of its bytes in turn
    back    a lane's logits as the target's: column v is that of the lane's token with the bytes of v, or -inf

Tokens without bytes (specials) have no partner but the ends of a text, which stand for each other. A target token that
cannot be spelled is left out of what the lane reads; a lane token without a partner cannot be drafted.
Of several tokens with equal bytes the last one stands for all: in SentencePiece the first ones are raw bytes.

x_MV: logits, M nodes, V the target's vocabulary, W the lane's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raydecode.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 0.1
"""Least share of the target's tokens with a partner. Byte-level vocabularies of unlike languages share a third."""


class Spelling:
    """Between a target and a lane with other ids. Raises UserError where the two have too little in common."""

    def __init__(
        self,
        target: Sequence[bytes],
        target_eos: frozenset[int],
        lane: Sequence[bytes],
        lane_eos: frozenset[int],
        name: str = "draft",
    ) -> None:
        import torch

        self._bytes = target
        self._known = {text: id for id, text in enumerate(lane) if text and id not in lane_eos}
        self._longest = max(map(len, self._known), default=0)
        self._ends = {id: (min(lane_eos),) for id in target_eos} if lane_eos else {}
        column_V = [-1 if id in target_eos else self._known.get(text, -1) for id, text in enumerate(target)]
        found = sum(column >= 0 for column in column_V)
        if found < ENOUGH * len(target):
            raise UserError(
                f"the vocabularies do not fit: {found} of the {len(target)} tokens of the job's model have a partner "
                f"with the same bytes among the {len(lane)} of '{name}'",
                field="decoding.drafter.model", value=name, hint="draft with a smaller model of the same family",
            )  # fmt: skip
        for id in target_eos if lane_eos else ():
            column_V[id] = min(lane_eos)
        self._there_V = torch.tensor([column >= 0 for column in column_V])
        self._column_V = torch.tensor([max(column, 0) for column in column_V])

    def there(self, token: int) -> tuple[int, ...]:
        """The lane's ids for a target token; () where it cannot be spelled."""
        return self._ends.get(token) or self._spelled(self._bytes[token])

    def back(self, logits_MW: Tensor) -> Tensor:
        """float32 [M, V]."""
        x_MV = logits_MW.index_select(1, self._column_V.to(logits_MW.device))
        return x_MV.masked_fill_(~self._there_V.to(x_MV.device), -math.inf)

    @functools.cached_property
    def share(self) -> float:
        """Part of the target's tokens that have a partner."""
        return float(self._there_V.float().mean())

    def _spelled(self, text: bytes) -> tuple[int, ...]:
        out, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._known), None)
            if end is None:
                return ()
            out.append(self._known[text[at:end]])
            at = end
        return tuple(out)


def spelling(
    target: Sequence[bytes], target_eos: frozenset[int], lane: Sequence[bytes], lane_eos: frozenset[int], name: str
) -> Spelling | None:
    """None where both count alike: equal bytes id by id. A vocabulary padded at its end counts like its brother."""
    common = min(len(target), len(lane))
    alike = list(target[:common]) == list(lane[:common]) and not any((*target[common:], *lane[common:]))
    return None if alike else Spelling(target, target_eos, lane, lane_eos, name)
