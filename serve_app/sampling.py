"""OpenAI's sampling fields as a sampler chain of ours, laid over the chain that the served model has by default. Pure.

Order: logit_bias, penalties, temperature, top_p, which is the order of the cards' stages in vLLM. A field replaces the
card of its name where the chain has it, goes to its place where it has none, and at the value that changes nothing it
takes the card away. Temperature 0 is `greedy`, which makes idle whatever only narrows the choice (top_p, top_k, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydecode import registry
from raydecode.config.decoding import known
from raydecode.request import Card
from raydecode.samplers.temperature import TINY

IDENTITY: Mapping[str, Mapping[str, Any]] = {
    "logit_bias": {"bias": {}},
    "presence_penalty": {"value": 0.0},
    "frequency_penalty": {"value": 0.0},
    "temperature": {"value": 1.0},
    "top_p": {"p": 1.0},
}
"""Field -> the option it sets, at the value that changes nothing. Fields and samplers have the same names."""


def chain(base: tuple[Card, ...], given: Mapping[str, Any]) -> tuple[Card, ...]:
    """`base` with the given fields (those that are not None) over it."""
    cards = list(base)
    temperature = given.get("temperature")
    greedy = temperature is not None and temperature < TINY
    if temperature is not None:
        cards = [card for card in cards if not _settles(card)]
    for name, identity in IDENTITY.items():
        value = given.get(name)
        if value is None or (name == "temperature" and greedy):
            continue
        ((option, nothing),) = identity.items()
        at = next((i for i, card in enumerate(cards) if card.name == name), None)
        card = None if value == nothing else known("samplers", {"name": name, option: _json(value)}, name)
        if at is not None:
            cards[at : at + 1] = [card] if card else []
        elif card:
            cards.insert(_place(cards, name), card)
    if greedy:
        cards = [*cards, Card("greedy")]
    if any(_settles(card) for card in cards):
        cards = [card for card in cards if _settles(card) or not _narrows(card)]
    return tuple(cards)


def _json(value: Any) -> Any:
    return {str(key): nats for key, nats in value.items()} if isinstance(value, Mapping) else value


def _place(cards: list[Card], name: str) -> int:
    """Before the first card of a later stage."""
    own = _stage(name)
    return next((i for i, card in enumerate(cards) if _stage(card.name) > own), len(cards))


def _stage(name: str) -> int:
    vllm = registry.get("samplers", name).vllm
    return vllm.stage if vllm else -1


def _settles(card: Card) -> bool:
    return bool(getattr(registry.get("samplers", card.name).factory, "settles", False))


def _narrows(card: Card) -> bool:
    return bool(getattr(registry.get("samplers", card.name).factory, "keeps_best", False))
