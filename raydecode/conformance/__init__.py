"""The laws as functions: shipped, and run on every registered method, ours or a third party's.

    from raydecode import conformance, registry
    conformance.check(registry.get("samplers", "top_p"))      # raises Violation at the first law that does not hold

One file per room. `LAWS` of a room are functions of a registered `Method`; a new file is tested before it has a test.
Engines and noise are not registered, so their laws are functions of what makes an engine (`engines`) and of the two
functions of the draw (`randomness`). The toy engine is the stand for all of them: five tokens, truth by enumeration.
What a law cannot see: whether a method does what its paper says. That is its own truth test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from raydecode.conformance.law import Violation
from raydecode.registry import Method

ROOMS = ("samplers", "monitors", "drafters", "interventions")
"""Rooms that have laws."""


def laws(room: str) -> tuple[Callable[[Method], None], ...]:
    """The laws of a room, in the order in which they are worth reading; none for rooms without."""
    return importlib.import_module(f"{__name__}.{room}").LAWS if room in ROOMS else ()


def check(method: Method) -> list[str]:
    """Run all laws of the method's room; their names. Raises Violation."""
    done = []
    for law in laws(method.room):
        law(method)
        done.append(law.__name__)
    return done


__all__ = ["ROOMS", "Violation", "check", "laws"]
