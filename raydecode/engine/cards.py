"""Cards against a loop: which it refuses, and their options filled in. Pure: asks the registry, makes no method."""

from __future__ import annotations

import dataclasses
from typing import Any

from raydecode import registry
from raydecode.errors import Refused, RowError, UserError
from raydecode.request import FIELDS, SINGLE, Card, DecodingSpec


def refuse(engine: str, spec: DecodingSpec) -> Refused | None:
    """What a loop named `engine` cannot host: an unknown method, one whose card does not list it, a search, ..."""
    for room, cards in spec.cards().items():
        for card in cards:
            field = f"decoding.{FIELDS[room]}"
            try:
                method = registry.get(room, card.name, field)
            except UserError as error:
                return Refused(error.message, field=field, value=card.name, nearest=error.nearest, hint=error.hint)
            if room == "searches" or engine not in method.engines:
                return Refused(
                    f"the {engine} engine does not host {room}/{card.name}", field=field, value=card.name,
                    hint=f"engines that do: {', '.join(e for e in method.engines if e != engine) or 'none yet'}",
                )  # fmt: skip
    for i, arm in enumerate(registry.among(spec.drafter)):
        refused = refuse(engine, DecodingSpec(drafter=arm))
        if refused:
            return refused.moved("decoding.drafter", f"decoding.drafter.among[{i}]")
    try:
        registry.check_chain(spec.sampler, "decoding.sampler")
    except UserError as error:
        return Refused(error.message, field=error.field, value=error.value, hint=error.hint)
    return None


def candidates(engine: str, card: Card) -> tuple[Card, ...]:
    """The drafters behind a card that chooses, options complete: those it names, else all that `engine` hosts, that
    need no files of their own and that keep the text's law, each as wide as it can."""
    cards = registry.among(card)
    if not cards:
        some = [one for one in registry.cards("drafters") if one.effects.exact and not one.loads]
        wide = (Card(one.name, getattr(one.factory, "widest", {})) for one in some)
        cards = tuple(
            one for one in wide if not registry.chooses(one) and not refuse(engine, DecodingSpec(drafter=one))
        )
    filled = (_filled("drafters", one) for one in cards)
    return tuple({repr(one): one for one in filled}.values())  # one arm per card, however often it is named


def complete(spec: DecodingSpec) -> DecodingSpec:
    """The spec with the defaults of every card's options. Raises RowError for a card whose options are not valid."""
    change: dict[str, Any] = {}
    for room, cards in spec.cards().items():
        filled = tuple(_filled(room, card) for card in cards)
        if filled != cards:
            change[FIELDS[room]] = filled[0] if FIELDS[room] in SINGLE else filled
    return dataclasses.replace(spec, **change) if change else spec


def _filled(room: str, card: Card) -> Card:
    try:
        return registry.get(room, card.name).parse(card, f"decoding.{FIELDS[room]}")
    except UserError as error:
        raise RowError("request", "BadOption", str(error)) from None
