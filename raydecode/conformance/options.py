"""Valid options of a method, made from its JSON Schema, so that laws run on methods nobody wrote a case for.

A field offers its `examples` if it has any, else its default, its bounds and a value between them. An option that the
schema does not bound (a string, a list, an object) needs a default or `Field(examples=[...])`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from raydecode.conformance.law import Violation
from raydecode.errors import UserError
from raydecode.registry import Method
from raydecode.request import Card

MOST = 12
"""Option sets per method: the laws run on each."""


def option_sets(method: Method) -> list[dict[str, Any]]:
    """Up to MOST different, validated option sets with defaults filled in; at least one. Raises Violation."""
    schema = method.schema().get("properties", {})
    offers = {name: _offers(method, name, field) for name, field in schema.items()}
    sets: list[dict[str, Any]] = []
    for values in itertools.islice(itertools.product(*offers.values()), 8 * MOST):
        try:
            parsed = dict(method.parse(Card(method.name, dict(zip(offers, values, strict=True))), "options").options)
        except UserError:
            continue  # two offers that do not go together
        if parsed not in sets:
            sets.append(parsed)
    if not sets:
        raise Violation(method, "options", f"no valid options among {offers}; give the fields examples")
    return sets[:: max(len(sets) // MOST, 1)][:MOST]


def _offers(method: Method, name: str, field: Mapping[str, Any]) -> list[Any]:
    if field.get("examples"):
        return list(field["examples"])
    if field.get("enum"):
        return list(field["enum"])
    offers = [field["default"]] if "default" in field else []
    match field.get("type"):
        case "boolean":
            offers += [False, True]
        case "integer":
            low, high = field.get("minimum", field.get("exclusiveMinimum", 0) + 1), field.get("maximum")
            offers += [low, low + 2, high if high is not None else low + 1000]
        case "number":
            low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
            low, high = 0.0 if low is None else low, field.get("exclusiveMaximum", 10.0) if high is None else high
            inside = [low + share * (high - low) for share in (0.001, 0.1, 0.9)]
            offers += [edge for edge, kind in ((low, "minimum"), (high, "maximum")) if kind in field] + inside
    if not offers:
        raise Violation(method, "options", f"option '{name}' has neither default nor examples: {dict(field)}")
    return offers
