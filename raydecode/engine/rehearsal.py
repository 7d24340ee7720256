"""What a row would choose, were these logits its model's: the walk's own stages, on a copy of the row.

Drafters may not import samplers, and a draft drawn with other noise than the row's own is rarely accepted; so the
engine draws for them (drafter-invariant coupling, Daliri et al., arXiv:2408.07978). Along a drafted path the states of
samplers and monitors follow the choices made there; off it they are the row's own. Nothing here reaches the row: a
method that raises ends the copy, and the text cannot tell that there was one.

x_RV: float32 logits, R rehearsed nodes, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from raydecode.engine import chain
from raydecode.engine.host import ServiceHost
from raydecode.engine.inside import Look
from raydecode.engine.lane import Outputs
from raydecode.engine.rows import Row
from raydecode.engine.walk import Methods, Visit, constrained, masked, refuse_empty, token_facts
from raydecode.events import TokenEvent
from raydecode.randomness import draw
from raydecode.request import RowId
from raydecode.tree import TokenTree

Path = tuple[int, ...]


@dataclass(slots=True)
class Rehearsal:
    """The choices of one step. states: (row, path) -> states of its samplers and monitors behind that path."""

    methods: Methods
    host: ServiceHost
    states: dict[tuple[RowId, Path], tuple[list[dict[str, float]], list[Any]]] = field(default_factory=dict)

    def copy(self, row: Row, path: Path) -> Row:
        """The row as if `path` were its text already."""
        samplers, monitors = self.states.get((row.id, path), (row.sampler_state, row.monitor_state))
        return dataclasses.replace(
            row, context=[*row.context, *path], sampler_state=list(samplers), monitor_state=list(monitors),
            history=None, rehearsed=True, replay=(), logprobs=[], parked=False, fault=None,
        )  # fmt: skip

    def choose(
        self,
        places: Sequence[tuple[Row, Path]],
        x_RV: Tensor,
        count: Sequence[int],
        outputs: Outputs | None = None,
        node_R: Sequence[int] = (),
    ) -> list[tuple[int, ...]]:
        """Per place its first `count` choices. outputs, node_R: where samplers may look into the model."""
        rows = [self.copy(row, path) for row, path in places]
        number = {id(row): r for r, row in enumerate(rows)}
        visits = [Visit(row, TokenTree.root(row.pending), 0) for row in rows]
        free, masks = constrained(visits, self.methods, self.host)
        index = [number[id(visit.row)] for visit in free]
        out: list[tuple[int, ...]] = [() for _ in rows]
        if not index:
            return out
        group = [rows[r] for r in index]
        raw_GV = x_RV[index]
        x_GV, kept_G = masked(raw_GV, group, masks, self.host.eos)
        look = None
        if outputs:
            look = Look(outputs, self.methods.sites, [node_R[r] for r in index], self.methods.slope)
        left, observations = chain.shape(x_GV, group, self.methods.samplers, look)
        refuse_empty(left, raw_GV, group)
        keys, t = [row.key for row in group], [row.t for row in group]
        first_G = token_G = left.draw(keys, t, self.methods.contend).cpu()
        most = max(count[r] for r in index)
        left_GV = left.whole().clone() if most > 1 else None
        for turn in range(most):
            if turn and left_GV is not None:
                token_G = draw(left_GV, keys, t, self.methods.contend).cpu()
            for g, r in enumerate(index):
                token = int(token_G[g])
                if turn < count[r] and group[g].reason is None:
                    if left_GV is not None:
                        if not math.isfinite(float(left_GV[g, token])):
                            continue  # nothing is left
                        left_GV[g, token] = -math.inf
                    out[r] = (*out[r], token)
        chain.observe(observations, group, first_G)
        facts = token_facts(raw_GV, group, first_G)
        for g, r in enumerate(index):
            if out[r]:
                self._follow(places[r], group[g], int(first_G[g]), kept_G[g], facts[g])
        return out

    def _follow(self, place: tuple[Row, Path], row: Row, token: int, kept: float, facts: Mapping[str, Any]) -> None:
        """Keep the states behind the first choice. A monitor that wants more than a draft knows stays where it is."""
        monitors = row.monitor_state
        if monitors:
            event = TokenEvent(row.id, row.t, token, self.host.token_bytes[token], kept=kept, **facts)
            try:
                monitors = [
                    self.methods.monitors(card.name).observe(state, event)
                    for card, state in zip(row.spec.monitors, monitors, strict=True)
                ]
            except Exception:  # e.g. one that reads hidden states: this was no walk
                return
        self.states[place[0].id, (*place[1], token)] = row.sampler_state, monitors
