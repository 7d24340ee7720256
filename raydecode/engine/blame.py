"""Where a NaN came from: a row whose logits are not finite is read once more with every site in sight.

The row has ended, so its slot is free to be read into; nobody else waits for more than this one row's prefill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from raydecode.contracts import Intervention, Needs
from raydecode.engine.inside import hooks
from raydecode.engine.lane import Chunk, Lane, SourceLane
from raydecode.engine.rows import Row
from raydecode.tree import TokenTree

PIECE = 32
"""Tokens per call: the hidden states of all sites are held for one such piece."""


def blame(lane: Lane, row: Row, method: Callable[[str], Intervention]) -> str:
    """ "layer.4 at position 17 (token 9)": the innermost site of the first position that is not finite, or ""."""
    if not lane.sites:
        return ""
    lane.release(row.slot)
    if not lane.reserve(row.slot, 0, len(row.context)):
        return ""  # others hold what this row shared; it takes none of theirs
    if row.source:
        cast(SourceLane, lane).read(row.slot, row.source)
    with torch.no_grad():
        for start in range(0, len(row.context), PIECE):
            ids = row.context[start : start + PIECE]
            chunk = Chunk(row.slot, start, (), TokenTree.chain(ids))
            acting = hooks([chunk], {row.slot: row}, method)
            seen = lane.forward([chunk], Needs(hidden=tuple(lane.sites)), acting).hidden
            for i, token in enumerate(ids):
                for site in lane.sites:
                    if not bool(seen[site][i].isfinite().all()):
                        return f"{site} at position {start + i} (token {token})"
    return ""
