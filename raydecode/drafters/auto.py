"""`auto`: the engine chooses what pays, row by row and call by call: one of many drafters, a part of its tree, or none.

This file only says among whom; an engine that measures what its calls cost does the rest (`raydecode.engine.choose`,
`cost`, `shape`, `acceptance`), and one that does not drafts nothing. Expected tokens per second are maximised over all
rows of a call, so that trees shrink where a batch makes tokens dear, and plain decoding is always among the choices.

Changes the text: never. State: that of the drafters chosen among. Cost: bounded, each drafter's time by a small part of
the time of all calls and a part of what it saved.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from pydantic import Field, field_validator

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.errors import UserError
from raydecode.request import Card
from raydecode.tree import TokenTree


@registry.register("drafters", exact=True, engines=("torch", "toy"))
class Auto:
    """The engine chooses what pays, by measurement: a drafter, how much of its draft, or none."""

    class Options(registry.Options):
        among: list[str | dict[str, Any]] = Field(
            default=[],
            description="names or cards to choose among; empty: all that load nothing",
            examples=[[], ["ngram", {"name": "token_recycling", "k": 2}]],
        )

        @field_validator("among", mode="after")
        @classmethod
        def _known(cls, value: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
            for i, one in enumerate(value):
                where = f"among[{i}]"
                card, name = _card(one, where), where if isinstance(one, str) else f"{where}.name"
                method = registry.get("drafters", card.name, name)
                if hasattr(method.factory, "among"):
                    raise UserError(
                        f"'{card.name}' chooses itself", field=name, value=card.name, hint="name what it may choose"
                    )
                method.parse(card, where)
            return value

    needs = Needs()
    scope = "namespace"

    @staticmethod
    def among(options: Given) -> tuple[Card, ...]:
        """The cards to choose among; empty: whatever the engine hosts and need not load."""
        return tuple(_card(one) for one in options.get("among", ()))

    def open_shared(self) -> None:
        return None

    def open(self, row: RowView, options: Given) -> None:
        return None

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        return [TokenTree.root(row.pending) for row in rows]
        yield

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Given) -> list[Any]:
        return [record.state for record in records]


def _card(given: str | dict[str, Any], where: str = "among") -> Card:
    if isinstance(given, str):
        return Card(given)
    if not isinstance(given.get("name"), str):
        raise UserError(f"a card needs a `name`, got {given}", field=where, value=given, hint="{name: ngram}")
    return Card(given["name"], {key: value for key, value in given.items() if key != "name"})
