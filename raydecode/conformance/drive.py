"""Requests through an engine, and what came out, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raydecode.conformance.law import Violation
from raydecode.contracts import Engine
from raydecode.events import Event, OutcomeEvent, TextEvent, TokenEvent
from raydecode.request import Request, RowId

IDLE_STEPS = 2_000
"""Steps in a row without an event before a run counts as stuck: more than the chunks of any test's prompt."""


@dataclass(slots=True)
class Run:
    """Everything that happened, by row. texts: the TextEvents joined."""

    outcomes: dict[RowId, OutcomeEvent] = field(default_factory=dict)
    tokens: dict[RowId, list[TokenEvent]] = field(default_factory=dict)
    texts: dict[RowId, bytes] = field(default_factory=dict)
    steps: int = 0

    def take(self, events: Iterable[Event]) -> None:
        """File a step's events. Raises Violation for an event of a row that ended, or a second outcome."""
        for event in events:
            if event.row in self.outcomes:
                raise Violation(event.row, "one outcome, the last event", f"{event} after {self.outcomes[event.row]}")
            match event:
                case TokenEvent():
                    self.tokens.setdefault(event.row, []).append(event)
                case TextEvent():
                    self.texts[event.row] = self.texts.get(event.row, b"") + event.bytes
                case OutcomeEvent():
                    self.outcomes[event.row] = event

    def difference(self, other: Run) -> str | None:
        """The first row whose tokens, text, reason, error, reports or token events differ, in words; None if equal.

        Statistics and run events are not compared: they depend on drafter and clock.
        """
        if set(self.outcomes) != set(other.outcomes):
            return f"other rows: {sorted(set(self.outcomes) ^ set(other.outcomes))}"
        for row, outcome in self.outcomes.items():
            if outcome != other.outcomes[row]:
                return f"{outcome}\n  and {other.outcomes[row]}"
            if self.tokens.get(row) != other.tokens.get(row):
                pairs = zip(self.tokens.get(row, ()), other.tokens.get(row, ()), strict=False)
                first = next((pair for pair in pairs if pair[0] != pair[1]), "one is longer")
                return f"{row}: token events {first}"
        return None


def drive(engine: Engine, requests: Sequence[Request], *, cancel: Mapping[int, Sequence[str]] | None = None) -> Run:
    """Submit all, step until nothing is left. cancel: after this many steps, these requests.

    After each step the engine's own invariants are checked, if it offers `check_integrity`. Raises Violation when the
    engine goes on for IDLE_STEPS without an event.
    """
    run, idle = Run(), 0
    integrity = getattr(engine, "check_integrity", lambda: None)
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for id in (cancel or {}).get(run.steps, ()):
            engine.cancel(id)
        events = engine.step()
        run.take(events)
        integrity()
        run.steps += 1
        idle = 0 if events else idle + 1
        if idle > IDLE_STEPS:
            raise Violation(type(engine).__name__, "progress", f"{IDLE_STEPS} steps without an event, still busy")
        if not events:
            engine.wait(0.01)
    return run
