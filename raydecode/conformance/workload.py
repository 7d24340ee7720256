"""Requests for the toy engine that mix every registered method: what one row does must not matter to another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from raydecode import registry
from raydecode.conformance.options import option_sets
from raydecode.request import Card, DecodingSpec, Ids, Request

PROMPTS = (Ids((0, 1, 2)), Ids((1,)), Ids((3, 3, 0, 2, 1, 0, 0)))
STOPS = ((), (b"ab)",), (b"bb", b"(a"))


def chains() -> list[tuple[Card, ...]]:
    """Plain, two ordinary chains, and every registered sampler alone that keeps state."""
    found: list[tuple[Card, ...]] = [
        (),
        (Card("temperature", {"value": 1.3}), Card("top_p", {"p": 0.9})),
        (Card("repetition_penalty", {"value": 1.4}), Card("temperature", {"value": 0.9})),
    ]
    stateful = [m for m in registry.cards("samplers") if not m.loads and m.factory().columns]
    return found + [(Card("temperature", {"value": 1.3}), Card(m.name, option_sets(m)[0])) for m in stateful]


def monitor_sets() -> list[tuple[Card, ...]]:
    """None, every registered monitor alone that loads nothing, and all of them together."""
    cards = [Card(m.name, option_sets(m)[0]) for m in registry.cards("monitors") if not m.loads]
    return [(), *((card,) for card in cards), *([tuple(cards)] if len(cards) > 1 else [])]


def services() -> dict[str, Callable[[Any], Any]]:
    """The stand-ins (`rehearsal`) of all registered monitors."""
    found: dict[str, Callable[[Any], Any]] = {}
    for method in registry.cards("monitors"):
        found |= getattr(method.factory, "rehearsal", {})
    return found


def requests(drafter: Card | None = None, max_tokens: int = 14, n: int = 2) -> list[Request]:
    """One request per chain and monitor set, prompts and stop strings in turn."""
    out = []
    for i, (chain, monitors) in enumerate(itertools.product(chains(), monitor_sets())):
        spec = DecodingSpec(
            max_tokens=max_tokens, seed=7, n=n, sampler=chain, drafter=drafter, monitors=monitors, stop=STOPS[i % 3],
            logprobs=(None, 0, 2)[i % 3],
        )  # fmt: skip
        out.append(Request(f"r{i}", f"noise {i}", PROMPTS[i % len(PROMPTS)], spec))
    return out


def without(request: Request, *fields: str) -> Request:
    """The request with these fields of its spec at their defaults."""
    plain = DecodingSpec()
    spec = dataclasses.replace(request.decoding, **{name: getattr(plain, name) for name in fields})
    return dataclasses.replace(request, decoding=spec)
