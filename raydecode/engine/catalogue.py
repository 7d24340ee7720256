"""Every registered method as plain data: what `raydecode methods`, the manual, and `GET /v1/methods` list."""

from __future__ import annotations

from typing import Any

from raydecode import registry
from raydecode.engine.cards import candidates
from raydecode.request import Card

OURS = ("our processor", "our proposer")
"""Who runs a method inside vLLM, if not vLLM itself."""


def catalogue(room: str | None = None) -> list[dict[str, Any]]:
    """Every method of a room, or of all rooms, as JSON-able rows with the JSON Schema of its options."""
    found = [one for name in ([room] if room else registry.ROOMS) for one in registry.methods(name).values()]
    return [
        {
            "room": method.room,
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "exact": method.effects.exact,
            "pure": method.effects.pure,
            "engines": list(method.engines),
            "vllm": _inside(method),
            "loads": method.loads,
            "among": _among(method),
            "origin": method.origin,
            "options": method.schema(),
        }
        for method in found
    ]


def _among(method: registry.Method) -> list[str] | None:
    """Whom a drafter that chooses may choose unless its options name some, on any engine; None for other methods."""
    card = Card(method.name)
    if method.room != "drafters" or not registry.chooses(card):
        return None
    return sorted({one.name for engine in method.engines for one in candidates(engine, card)})


def _inside(method: registry.Method) -> str | None:
    """Who runs it inside vLLM, if anybody."""
    if "vllm" not in method.engines:
        return None
    return "its own" if method.vllm else OURS[method.room == "drafters"]
