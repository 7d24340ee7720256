"""Laws of drafters: a cache that may be lost, may fail, and never changes text.

The reference is plain decoding of the same rows: with the keyed draw a drafted text must be equal to it, token by
token and state by state. No chi-square per drafter is needed.
"""

from __future__ import annotations

from raydecode.conformance import workload
from raydecode.conformance.drive import Run, drive
from raydecode.conformance.law import require
from raydecode.conformance.options import option_sets
from raydecode.conformance.recorders import recorded
from raydecode.engine.cost import CostCurve
from raydecode.engine.toy import ToyEngine
from raydecode.registry import Method
from raydecode.request import Card


def text_is_plain(method: Method) -> None:
    """Outcomes, token events and reports equal those of plain decoding, under every chain and monitor."""
    plain, _ = _run(None)
    for options in option_sets(method):
        drafted, _ = _run(Card(method.name, options))
        found = plain.difference(drafted)
        require(found is None, method, "text_is_plain", f"options {options}: {found}")


def states_are_plain(method: Method) -> None:
    """State traces of samplers and monitors equal those of plain decoding: what texts do not show."""
    _, plain = _run(None)
    for options in option_sets(method):
        _, drafted = _run(Card(method.name, options))
        for name, trace in plain.items():
            require(trace == drafted[name], method, "states_are_plain", f"options {options}: trace of {name} differs")


def trees_are_valid(method: Method) -> None:
    """No exception and no invalid tree. The engine survives both; a drafter that is meant to help does neither."""
    for options in option_sets(method):
        run, _ = _run(Card(method.name, options))
        failures = {row: one.stats.draft_failures for row, one in run.outcomes.items() if one.stats.draft_failures}
        require(not failures, method, "trees_are_valid", f"options {options}: failures by row {failures}")


CHEAP = CostCurve((1, 2), (1.0, 1.02), fixed=True)
"""What calls cost, for drafters that choose by it: beside a second per call drafting is free, so they draft."""

LAWS = (text_is_plain, states_are_plain, trees_are_valid)


def _run(drafter: Card | None) -> tuple[Run, dict]:
    given, traces = recorded()
    engine = ToyEngine(slots=32, given=given, services=workload.services(), curve=CHEAP)
    return drive(engine, workload.requests(drafter, max_tokens=24)), traces()
