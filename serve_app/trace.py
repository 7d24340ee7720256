"""Events as the data that the playground draws: one shape for the stream's `raydecode` field and `explain --json`. Pure.

    token  t, id, text, bytes (list of ints), logp, entropy (nats, null where not computed), source, kept,
           top: [{id, text, logp}, ...] of the raw model, likeliest first
    step   t0, drafter, path, emitted (how many tokens), tree: {ids, texts, parents}

A step's root is the token that was pending before it. `path` are the nodes where a token was chosen, so the token at
t0 + i, for i < len(path) - 1, is the drafted node path[i + 1]; the last token of a step is always the model's own.
Tokens come before the step that made them. `text` is for the eye; joined texts are made from `bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from raydecode.events import Event, StepEvent, TokenEvent

Spell = Callable[[int], bytes | None]
"""The vocabulary: a token's bytes, or None where they are not known."""


def trace(events: Iterable[Event], sample: int, spell: Spell) -> dict[str, list[dict[str, Any]]]:
    """{"tokens": [...], "steps": [...]} of one sample's events."""
    mine = [event for event in events if event.row.sample == sample]
    return {
        "tokens": [token(event, spell) for event in mine if isinstance(event, TokenEvent)],
        "steps": [step(event, spell) for event in mine if isinstance(event, StepEvent) and event.emitted],
    }


def token(event: TokenEvent, spell: Spell) -> dict[str, Any]:
    return {
        "t": event.t,
        "id": event.token,
        "text": shown(event.bytes),
        "bytes": list(event.bytes),
        "logp": event.logp,
        "entropy": event.entropy,
        "source": event.source,
        "kept": event.kept,
        "top": [{"id": id, "text": shown(spell(id)), "logp": logp} for id, logp in event.top],
    }


def step(event: StepEvent, spell: Spell) -> dict[str, Any]:
    tree = event.tree
    return {
        "t0": event.t0,
        "drafter": event.drafter,
        "path": list(event.path),
        "emitted": len(event.emitted),
        "tree": {
            "ids": list(tree.token),
            "texts": [shown(spell(id)) for id in tree.token],
            "parents": list(tree.parent),
        },
    }


def shown(spelling: bytes | None) -> str | None:
    """A token for the eye: parts of a character as escapes; None where its bytes are not known."""
    return None if spelling is None else spelling.decode("utf-8", "backslashreplace")
