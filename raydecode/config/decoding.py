"""The section `decoding`: one meaning in a job file, in a row's `decoding` column, in a request and in the record.

A row's keys replace the job's, whole keys at a time; nulls mean "not given" (an Arrow struct fills in every key of
every row), so a row switches a method off by name: `drafter: none`, `search: none`, `monitors: []`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from raydecode import registry, request
from raydecode.complaints import kind, shown
from raydecode.config.fields import CardField, Count, Ints, Positive, Section, Strings, as_card, complaint
from raydecode.errors import UserError, nearest
from raydecode.request import Card, DecodingSpec, Json

AUTO, NONE = "auto", "none"
CHAIN = {field: room for room, field in request.FIELDS.items() if field not in request.SINGLE}
SINGLE = {field: room for room, field in request.FIELDS.items() if field in request.SINGLE}


class RowDecoding(Section):
    """What a row may set. Field by field a `DecodingSpec`."""

    max_tokens: Count = 256
    """most output tokens of a row"""
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    """with the row's id the only source of randomness"""
    n: Count = 1
    """samples per row; they share one prefill"""
    sampler: tuple[CardField, ...] = ()
    """a name, a card, or a chain of cards applied in order; empty is the model's own law (temperature 1)"""
    drafter: CardField | None = None
    """none, auto (the engine chooses what pays), a name or a card; never changes the text"""
    search: CardField | None = None
    """null, a name or a card: several hypotheses per row"""
    monitors: tuple[CardField, ...] = ()
    """cards that watch or forbid tokens"""
    interventions: tuple[CardField, ...] = ()
    """cards that change tensors inside the model"""
    stop: Strings = ()
    """the text ends before the first of these"""
    stop_tokens: Ints = ()
    """token ids that end the text, besides the model's own EOS"""
    ignore_eos: bool = False
    """EOS is an ordinary token (for benchmarks)"""
    logprobs: int | None = Field(default=None, ge=0, le=1000)
    """null: not computed; k: log-probability of each token and of the k likeliest"""
    deadline_s: Positive | None = None
    """seconds a row may hold a slot; then it is an error row. Depends on the clock, so not part of the promise"""

    @field_validator(*CHAIN, mode="before")
    @classmethod
    def _chain(cls, value: Any, info: ValidationInfo) -> tuple[Card, ...]:
        where = f"{_where(info)}.{info.field_name}"
        if value in (None, NONE):
            return ()
        if not isinstance(value, list | tuple):
            return (known(CHAIN[str(info.field_name)], value, where),)
        cards = tuple(known(CHAIN[str(info.field_name)], card, f"{where}[{i}]") for i, card in enumerate(value))
        if info.field_name == "sampler":
            registry.check_chain(cards, where)
        return cards

    @field_validator(*SINGLE, mode="before")
    @classmethod
    def _single(cls, value: Any, info: ValidationInfo) -> Card | None:
        where = f"{_where(info)}.{info.field_name}"
        if value in (None, NONE):
            return None
        if isinstance(value, list | tuple):
            raise UserError(f"one {info.field_name} per row, got a list: {shown(value)}", field=where, value=value)
        return known(SINGLE[str(info.field_name)], value, where)

    @field_validator("stop", mode="after")
    @classmethod
    def _stop(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "" in value:
            raise UserError("an empty stop string would end every text at once", field=f"{_where(info)}.stop", value="")
        return value

    @property
    def spec(self) -> DecodingSpec:
        names = [f.name for f in dataclasses.fields(DecodingSpec)]
        values = {name: getattr(self, name) for name in names}
        stop = tuple(text.encode() for text in self.stop)
        return DecodingSpec(**(values | {"stop": stop}))


class DecodingConfig(RowDecoding):
    """How to decode every row of the job, unless a `decoding` column says otherwise."""

    drafter: CardField | None = Field(
        default_factory=lambda: (
            known("drafters", AUTO, "decoding.drafter") if AUTO in registry.methods("drafters") else None
        )
    )
    """none, auto (the engine chooses what pays), a name or a card; never changes the text"""
    overflow: Literal["error", "cut_left", "cut_right", "shorten"] = "error"
    """when prompt + max_tokens exceeds the context: an error row, cut the prompt, or shorten the output"""
    roster: dict[str, tuple[CardField, ...]] | None = None
    """room -> cards that rows may use besides the job's own; null: all that load nothing (on vLLM no drafters)"""

    @field_validator("roster", mode="before")
    @classmethod
    def _roster(cls, value: Any, info: ValidationInfo) -> Any:
        where = f"{_where(info)}.roster"
        if value is None:
            return None
        if not isinstance(value, dict):
            raise UserError(
                f"needs a mapping from room to cards, got {kind(value)}",
                field=where,
                value=value,
                hint="{samplers: [min_p]}",
            )
        rooms = list(request.FIELDS)
        out = {}
        for room, cards in value.items():
            if room not in rooms:
                raise UserError(
                    f"no room '{room}'",
                    field=f"{where}.{room}",
                    value=room,
                    nearest=nearest(room, rooms),
                    hint=f"rooms: {', '.join(rooms)}",
                )
            listed = cards if isinstance(cards, list | tuple) else [cards]
            out[room] = tuple(_listed(room, card, f"{where}.{room}[{i}]") for i, card in enumerate(listed))
        return out


@dataclass(frozen=True, slots=True)
class Roster:
    """What rows may use.

    own:   the job's own cards, room -> cards
    named: cards of `decoding.roster`, or None: any method that loads nothing
    """

    own: Mapping[str, tuple[Card, ...]]
    named: Mapping[str, tuple[Card, ...]] | None = None

    def cards(self) -> dict[str, tuple[Card, ...]]:
        """The cards named up front, room by room: the job's own and those of `decoding.roster`."""
        rooms = {**self.own, **(self.named or {})}
        return {room: tuple(_unique([*self.own.get(room, ()), *(self.named or {}).get(room, ())])) for room in rooms}

    def check(self, spec: DecodingSpec, where: str = "decoding") -> None:
        """Raise UserError when a row's spec uses a card from outside.

        A method that loads weights or a service must be on the roster with these very options; any other by name.
        """
        for room, cards in spec.cards().items():
            listed = self.cards().get(room, ())
            if room == "drafters":  # one that chooses may choose what rows may name
                arms = (arm for card in listed for arm in registry.among(card))
                listed = (*listed, *(registry.get(room, arm.name, where).parse(arm, where) for arm in arms))
                cards = tuple(arm for card in cards for arm in _served(card))
            for card in cards:
                method = registry.get(room, card.name, where)
                fits = card in listed if method.loads else card.name in {c.name for c in listed} or self.named is None
                if not fits:
                    names = ", ".join(_unique([c.name for c in listed])) or "none"
                    raise UserError(
                        f"{room}/{card.name} is not on the job's roster",
                        field=where,
                        value=card.name,
                        nearest=nearest(card.name, [c.name for c in listed]),
                        hint=f"on it: {names}. Add it to decoding.roster.{room}"
                        + (" with these options" if method.loads else ""),
                    )


def parse_decoding(
    value: Mapping[str, Json] | str, base: DecodingSpec | None = None, where: str = "decoding"
) -> DecodingSpec:
    """A mapping or its JSON text as a checked spec; its keys replace those of `base`. Raises UserError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error}", field=where, value=shown(value)) from None
    if not isinstance(value, Mapping):
        raise UserError(f"needs a mapping, got {kind(value)}", field=where, value=value)
    given = {key: part for key, part in value.items() if part is not None}
    for key in ("overflow", "roster"):
        if key in given:
            raise UserError("only the job may set this, not a row", field=f"{where}.{key}", value=given[key])
    try:
        parsed = RowDecoding.model_validate(given, context={"where": where})
    except ValidationError as error:
        raise complaint(error, RowDecoding, where) from None
    spec = parsed.spec
    if base is None:
        return spec
    return dataclasses.replace(base, **{name: getattr(spec, name) for name in parsed.model_fields_set})


def decoding_json(spec: DecodingSpec) -> dict[str, Json]:
    """The canonical mapping of a spec: what the record stores and `parse_decoding` reads back."""
    return {
        **{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)},
        **{name: [card.to_json() for card in getattr(spec, name)] for name in CHAIN},
        **{name: getattr(spec, name).to_json() if getattr(spec, name) else None for name in SINGLE},
        "stop": [text.decode(errors="surrogateescape") for text in spec.stop],
        "stop_tokens": list(spec.stop_tokens),
    }


def named_drafters(decoding: DecodingConfig) -> tuple[Card, ...]:
    """Drafters that the section names for its rows; one that chooses by measurement may choose none."""
    named = (*decoding.spec.cards()["drafters"], *(decoding.roster or {}).get("drafters", ()))
    return tuple(card for card in named if not registry.chooses(card))


def known(room: str, value: Any, where: str) -> Card:
    """The card with its name found in the registry and its options checked."""
    card = as_card(value, where)
    return _method(room, value, card, where).parse(card, where)


def _listed(room: str, value: Any, where: str) -> Card:
    """A roster card: a bare name allows every option, so required ones may be left out."""
    card = as_card(value, where)
    method = _method(room, value, card, where)
    return method.parse(card, where) if card.options or method.loads else card


def _method(room: str, value: Any, card: Card, where: str) -> registry.Method:
    return registry.get(room, card.name, f"{where}.name" if isinstance(value, dict) else where)


def _served(card: Card) -> tuple[Card, ...]:
    """The drafter, or those that it names to choose among; what an engine chooses among unasked loads nothing."""
    return registry.among(card) if registry.chooses(card) else (card,)


def _where(info: ValidationInfo) -> str:
    return (info.context or {}).get("where", "decoding")


def _unique(items: list[Any]) -> list[Any]:
    out: list[Any] = []
    for item in items:
        if item not in out:
            out.append(item)
    return out
