"""Engines that cheat: replacements for parts of the walk, each with the one bug that a law must find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from raydecode.engine import walk
from raydecode.events import Event, TokenEvent

Take = Callable[..., bool]


def accepting(visit: walk.Visit, event: TokenEvent, methods: Any, host: Any, events: list[Event], take: Take) -> bool:
    """The always-accepting verifier: where the draft has a child, take it, whatever was drawn."""
    children: Sequence[int] = [i for i, parent in enumerate(visit.tree.parent) if parent == visit.node]
    if children and event.source == "sampled":
        token = visit.tree.token[children[0]]
        event = dataclasses.replace(event, token=token, bytes=host.token_bytes[token])
    return take(visit, event, methods, host, events)


def telling(visit: walk.Visit, event: TokenEvent, methods: Any, host: Any, events: list[Event], take: Take) -> bool:
    """Tells monitors which tokens a draft had proposed."""
    if visit.tree.child(visit.node, event.token) is not None:
        event = dataclasses.replace(event, source="drafted")  # type: ignore[arg-type]
    return take(visit, event, methods, host, events)
