"""What rows ask of the inside of the model: hidden states of named sites, early logits, interventions.

A lane computes what its `needs` and hooks name and nothing else; here the rows' cards become those two, and what comes
back becomes what methods may look at. Legend: M nodes of the call, R rows, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Intervention, Needs, Nodes, Slope
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.rows import Row
from raydecode.errors import Refused, RowError, UserError, nearest
from raydecode.request import FIELDS, Card, DecodingSpec, RowId

NOTHING = Needs()

SlopeOf = Callable[[Row, str, Callable[[Tensor], Tensor], Tensor | None], Slope]
"""A row's path as it is now, run again differentiably; see `SamplerRows.slope`."""


def needs_of(method: Any, card: Card, sites: Sequence[str]) -> Needs:
    """All that a card of `method` (its object or its class) needs, under its options (complete) on these sites."""
    needs: Needs = getattr(method, "needs", NOTHING)
    own = getattr(method, "needs_of", None)
    return needs | own(card.options, sites) if own else needs


def asked(spec: DecodingSpec, sites: Sequence[str]) -> Needs:
    """The part of the needs of all of a row's cards that decides what the lane computes for it."""
    needs = NOTHING
    for room, cards in spec.cards().items():
        for card in cards:
            own = needs_of(registry.get(room, card.name).factory, card, sites)
            needs |= Needs(hidden=own.hidden, prompt=own.prompt and room == "drafters")
    return needs


def refuse_lanes(engine: str, spec: DecodingSpec, lanes: Sequence[str], sites: Sequence[str]) -> Refused | None:
    """A drafter whose model was not loaded with the engine. Options that are not valid are somebody else's word."""
    if spec.drafter is None:
        return None
    try:
        method = registry.get("drafters", spec.drafter.name)
        card = method.parse(spec.drafter, "decoding.drafter")
        wanted = needs_of(method.factory, card, sites).lanes
    except UserError:
        return None
    missing = next((name for name in wanted if name not in lanes), None)
    if missing is None:
        return None
    return Refused(
        f"drafters/{card.name} drafts with '{missing}', which this {engine} engine has not loaded",
        field="decoding.drafter", value=missing, nearest=nearest(missing, lanes),
        hint="name the drafter with this model in the job, or in decoding.roster",
    )  # fmt: skip


UNREAD = "; the torch engine reads attention weights of decoder-only models with engine.options.compile: false"


def refuse_sites(
    engine: str, spec: DecodingSpec, sites: Sequence[str], readable: Sequence[str] = (), differentiable: bool = False
) -> Refused | None:
    """A card that names a site which this model does not have, one that only can be read and is not to be, or one that
    wants gradients where there are none. Options that are not valid are somebody else's word."""
    for room, cards in spec.cards().items():
        for card in cards:
            field = f"decoding.{FIELDS[room]}"
            try:
                method = registry.get(room, card.name)
                card = method.parse(card, field)
                wanted = [(site, (*sites, *readable)) for site in needs_of(method.factory, card, sites).hidden]
                if room == "interventions":
                    wanted.append((method.factory().site(card.options), (*sites,)))
            except UserError:
                continue
            if method.needs.grad and not (differentiable and room == "samplers"):
                can = "samplers on engine torch with weights: full, compile: false and a decoder-only model"
                return Refused(
                    f"{room}/{card.name} needs gradients, which the {engine} engine does not give it", field=field,
                    value=card.name, hint=f"who has them: {can}",
                )  # fmt: skip
            wrong, known = next((pair for pair in wanted if pair[0] not in pair[1]), (None, ()))
            if wrong is not None:
                return Refused(
                    f"{room}/{card.name} asks for site '{wrong}': the {engine} engine's model has no such site",
                    field=field, value=wrong, nearest=nearest(wrong, known),
                    hint=f"sites: {', '.join(known) or 'none'}" + (UNREAD if wrong.startswith("attention.") else ""),
                )  # fmt: skip
    return None


def united(rows: Sequence[Row]) -> Needs:
    """What a forward of these rows has to give."""
    needs = NOTHING
    for row in rows:
        if row.inside.hidden:
            needs |= row.inside
    return needs


@dataclass(frozen=True, slots=True)
class Look:
    """What the forward kept, at one node per row. See `SamplerRows` for the methods' view of it."""

    outputs: Outputs
    sites: Sequence[str]
    node_R: Sequence[int]
    slope: SlopeOf | None = None

    def pick(self, index: Sequence[int]) -> Look:
        return Look(self.outputs, self.sites, [self.node_R[i] for i in index], self.slope)

    def hidden(self, site: str) -> Any:
        if site not in self.outputs.hidden:
            seen = ", ".join(self.outputs.hidden) or "none"
            raise RowError("sampler", "NotDeclared", f"site '{site}' is not in `needs.hidden`; computed: {seen}")
        found = self.outputs.hidden[site]
        return found[list(self.node_R)] if isinstance(found, Tensor) else [found[node] for node in self.node_R]

    def early_logits(self, site: str, index: Sequence[int], norm: bool) -> Tensor:
        assert self.outputs.head is not None, "a lane with sites has a head"
        return self.outputs.head(self.pick(index).hidden(site), norm)


# ------------------------------------------------------------------------------------------------ interventions
def hooks(chunks: Sequence[Chunk], rows: Mapping[int, Row], method: Callable[[str], Intervention]) -> list[Hook]:
    """The interventions of one call: one hook per card and place in the rows' lists. rows: by slot."""
    groups: dict[tuple[int, str], tuple[Card, list[tuple[Row, Chunk, int]]]] = {}
    first = 0
    for chunk in chunks:
        row = rows[chunk.slot]
        for place, card in enumerate(row.spec.interventions):
            groups.setdefault((place, repr(card)), (card, []))[1].append((row, chunk, first))
        first += len(chunk)
    made = []
    for _, (card, members) in sorted(groups.items(), key=lambda group: group[0][0]):
        at = tuple(node for _, chunk, start in members for node in range(start, start + len(chunk)))
        one = method(card.name)
        made.append(Hook(one.site(card.options), at, partial(_apply, one, card, [(r, c) for r, c, _ in members])))
    return made


def _apply(one: Intervention, card: Card, members: Sequence[tuple[Row, Chunk]], x_MD: Tensor) -> Tensor:
    """One call for all nodes of all rows; where it raises, row by row, so that only the guilty row ends."""
    try:
        return _checked(one, card, members, x_MD)
    except Exception as error:  # a method's code may raise anything; its row pays, not the batch
        if len(members) == 1:
            members[0][0].fail("intervention", error)
            return x_MD
    parts = x_MD.split([len(chunk) for _, chunk in members])
    return torch.cat([_apply(one, card, [member], x) for member, x in zip(members, parts, strict=True)])


def _checked(one: Intervention, card: Card, members: Sequence[tuple[Row, Chunk]], x_MD: Tensor) -> Tensor:
    owners: list[RowId] = []
    position: list[int] = []
    for row, chunk in members:
        owners += [row.id] * len(chunk)
        position += range(chunk.start, chunk.start + len(chunk.prefix))
        position += (chunk.start + len(chunk.prefix) + deep for deep in (chunk.tree.depth() if chunk.tree else ()))
    y_MD = one.apply(x_MD, Nodes(owners, position, Paths(members)), card.options)
    if y_MD.shape != x_MD.shape or y_MD.dtype != x_MD.dtype:
        got, want = f"{y_MD.dtype} {list(y_MD.shape)}", f"{x_MD.dtype} {list(x_MD.shape)}"
        raise RowError("intervention", "BadShape", f"{card.name} returned {got}, its input was {want}")
    return y_MD


class Paths(Sequence[tuple[int, ...]]):
    """The ids that lead to each node, put together when somebody asks."""

    def __init__(self, members: Sequence[tuple[Row, Chunk]]) -> None:
        self._where = [(row, chunk, i) for row, chunk in members for i in range(len(chunk))]

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, at: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, ...]]: ...

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        row, chunk, i = self._where[at]
        before = tuple(row.context[: chunk.start])
        if i < len(chunk.prefix):
            return before + chunk.prefix[: i + 1]
        assert chunk.tree is not None
        nodes = chunk.tree.path(i - len(chunk.prefix))
        return before + chunk.prefix + tuple(chunk.tree.token[node] for node in nodes)
