"""Laws of monitors: a fold over one row's events with immutable state, whatever the engine does around it.

States are compared with ==, so a state is a value: tuples, frozen dataclasses, numbers. A monitor that asks a service
names stand-ins for it (`rehearsal`); without them the row's fault is an unknown service, and little is tested.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raydecode.conformance import workload
from raydecode.conformance.drive import Run, drive
from raydecode.conformance.law import require
from raydecode.conformance.options import option_sets
from raydecode.conformance.recorders import MonitorRecorder
from raydecode.constraint import Constraint, Pending, Stop
from raydecode.contracts import Monitor
from raydecode.engine import toy
from raydecode.events import TokenEvent
from raydecode.registry import Method
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId


def fold(method: Method) -> None:
    """Opening again and folding the row's events gives the state after every event: replay rebuilds everything."""
    for request, recorder, run, engine in _runs(method):
        for row, trace in recorder.traces.items():
            monitor = method.factory()
            state = monitor.open(request, engine.host, _options(request))
            require(state == recorder.opened[request.id], method, "fold", f"{row}: a second `open` gives {state}")
            for event, expected in trace:
                state = monitor.observe(state, event)
                require(state == expected, method, "fold", f"{row}, t={event.t}: replayed {state}, was {expected}")
            events = tuple(event for event, _ in trace)
            seen = tuple(run.tokens.get(row, ()))
            require(events == seen, method, "fold", f"{row}: the monitor saw other events than the caller")


def questions_change_nothing(method: Method) -> None:
    """`constrain`, `verdict` and `score` answer the same however often they are asked, and leave no trace."""
    for request, recorder, _, engine in _runs(method):
        for row, trace in recorder.traces.items():
            monitor = method.factory()
            state = monitor.open(request, engine.host, _options(request))
            for event, expected in trace:
                first = _answers(monitor, state)
                require(first == _answers(monitor, state), method, "questions_change_nothing", f"{row}: {first}")
                state = monitor.observe(state, event)
                require(state == expected, method, "questions_change_nothing", f"{row}, t={event.t}: the state moved")


def forks_are_free(method: Method) -> None:
    """`observe` leaves the old state as it was: a fork goes its own way, a rollback is the old state."""
    for request, recorder, _, engine in _runs(method):
        for row, trace in recorder.traces.items():
            monitor = method.factory()
            state = monitor.open(request, engine.host, _options(request))
            for event, expected in trace:
                before = _answers(monitor, state)
                for token in range(toy.VOCAB):  # siblings that are never taken
                    other = dataclasses.replace(event, token=token, bytes=toy.TOKEN_BYTES[token])
                    monitor.constrain(monitor.observe(state, other))
                again = _answers(monitor, state)
                require(before == again, method, "forks_are_free", f"{row}, t={event.t}: {before} became {again}")
                state = monitor.observe(state, event)
                require(state == expected, method, "forks_are_free", f"{row}, t={event.t}: {state}, was {expected}")


def rows_are_isolated(method: Method) -> None:
    """A row's states and reports are the same alone and beside many rows of the same monitor."""
    for options in option_sets(method):
        requests = _requests(method, options)
        together, traces = _drive(method, requests)
        for request in requests:
            alone, own = _drive(method, [request])
            for row, outcome in alone.outcomes.items():
                require(outcome == together.outcomes[row], method, "rows_are_isolated", f"{row}: {outcome}")
                require(own.traces[row] == traces.traces[row], method, "rows_are_isolated", f"{row}: other states")


def sees_fold_events_only(method: Method) -> None:
    """Token events in order, from 0, `sampled` or `forced`: nothing that depends on a drafter or a clock."""
    for _, recorder, _, _ in _runs(method):
        for row, trace in recorder.traces.items():
            order = [event.t for event, _ in trace]
            require(order == list(range(len(trace))), method, "sees_fold_events_only", f"{row}: positions {order}")
            for event, _ in trace:
                fine = isinstance(event, TokenEvent) and event.source in ("sampled", "forced") and event.row == row
                require(fine, method, "sees_fold_events_only", f"{row}: {event}")


def a_resumed_row_is_the_same(method: Method) -> None:
    """Cut anywhere and given back its ids, a row has the states and the outcome that it would have had."""
    for request, recorder, run, _ in _runs(method):
        whole, row = run.outcomes[RowId(request.id)], RowId(request.id)
        for cut in range(1, len(whole.tokens)):
            resumed, own = _drive(method, [dataclasses.replace(request, resume=(whole.tokens[:cut],))])
            again = resumed.outcomes[row]
            require(again == whole, method, "a_resumed_row_is_the_same", f"cut at {cut}: {again}, was {whole}")
            require(not again.stats.replay_mismatches, method, "a_resumed_row_is_the_same", f"cut at {cut}: mismatches")
            same = own.traces[row] == recorder.traces[row]
            require(same, method, "a_resumed_row_is_the_same", f"cut at {cut}: other states")


def distortion_is_accounted(method: Method) -> None:
    """`kept` of every token is -ln of the raw model's mass that the constraint left standing, recomputed in float64."""
    for request, recorder, _, engine in _runs(method):
        prompt = request.prompt
        assert isinstance(prompt, Ids)
        for row, trace in recorder.traces.items():
            monitor, context = method.factory(), prompt.ids
            state = monitor.open(request, engine.host, _options(request))
            for event, after in trace:
                expected = _price(monitor.constrain(state), toy.logits(context).double().numpy(), engine.host.eos)
                close = math.isclose(event.kept, expected, abs_tol=2e-5)
                found = f"{row}, t={event.t}: kept {event.kept}, should be {expected}"
                require(close, method, "distortion_is_accounted", found)
                state, context = after, (*context, event.token)


def leaves_a_token(method: Method) -> None:
    """No constraint leaves a row without a token to draw: empty sets end the row as `on_empty` says."""
    for _, _, run, _ in _runs(method):
        for row, outcome in run.outcomes.items():
            kind = outcome.error.kind if outcome.error else ""
            require(kind != "BadLogits", method, "leaves_a_token", f"{row}: {outcome.error}")


def exact_means_exact(method: Method) -> None:
    """A monitor whose card says `exact` leaves every text as it is without it."""
    if not method.effects.exact:
        return
    for request, _, run, _ in _runs(method):
        plain = drive(toy.ToyEngine(slots=4), [workload.without(request, "monitors")])
        for row, outcome in plain.outcomes.items():
            same = (outcome.tokens, outcome.reason) == (run.outcomes[row].tokens, run.outcomes[row].reason)
            require(same, method, "exact_means_exact", f"{row}: {run.outcomes[row]}, plain {outcome}")


LAWS = (
    fold,
    questions_change_nothing,
    forks_are_free,
    rows_are_isolated,
    sees_fold_events_only,
    a_resumed_row_is_the_same,
    distortion_is_accounted,
    leaves_a_token,
    exact_means_exact,
)


def byte_truth(method: Method, options: dict[str, Any], text: bytes, cuts: Sequence[Sequence[int]]) -> None:
    """For monitors that read text: the verdict depends on bytes, not on where tokens begin and end.

    `cuts`: ways to cut `text` into tokens, each a rising list of offsets. A text is stopped under one cut if and only
    if it is under every other, and the text kept (`cut_bytes` off the end) is the same.
    """
    request = Request("bytes", "bytes", Ids((0,)), DecodingSpec(monitors=(Card(method.name, options),)))
    verdicts = {}
    for cut in cuts:
        monitor, kept = method.factory(), None
        state = monitor.open(request, toy.ToyEngine(slots=1).host, options)
        edges = [0, *cut, len(text)]
        for t, (start, end) in enumerate(itertools.pairwise(edges)):
            state = monitor.observe(state, TokenEvent(RowId("bytes"), t, 0, text[start:end]))
            verdict = monitor.verdict(state)
            if isinstance(verdict, Stop):
                kept = text[: end - verdict.cut_bytes]
                break
        verdicts[tuple(cut)] = kept
    require(len(set(verdicts.values())) == 1, method, "byte_truth", f"{text!r} cut at {verdicts}")


def _requests(method: Method, options: dict[str, Any], n: int = 1) -> list[Request]:
    cards = (Card(method.name, options),)
    return [
        Request(f"m{i}", f"m{i}", prompt, DecodingSpec(max_tokens=18, seed=3, n=n, sampler=chain, monitors=cards))
        for i, (prompt, chain) in enumerate(zip(workload.PROMPTS, workload.chains(), strict=False))
    ]


def _drive(method: Method, requests: list[Request]) -> tuple[Run, MonitorRecorder]:
    recorder = MonitorRecorder(method.factory())
    return drive(_engine(method, recorder), requests), recorder


def _runs(method: Method) -> list[tuple[Request, MonitorRecorder, Run, toy.ToyEngine]]:
    out = []
    for options in option_sets(method):
        for request in _requests(method, options):
            recorder = MonitorRecorder(method.factory())
            engine = _engine(method, recorder)
            out.append((request, recorder, drive(engine, [request]), engine))
    return out


def _engine(method: Method, recorder: MonitorRecorder) -> toy.ToyEngine:
    given = {("monitors", method.name): recorder}
    return toy.ToyEngine(slots=8, given=given, services=getattr(method.factory, "rehearsal", None))


def _options(request: Request) -> dict[str, Any]:
    return dict(request.decoding.monitors[0].options)


def _answers(monitor: Monitor, state: Any) -> tuple[Any, ...]:
    return monitor.constrain(state), monitor.verdict(state), monitor.score(state)


def _price(constraint: Constraint | Pending | None, x_V: np.ndarray, eos: frozenset[int]) -> float:
    """-ln(sum over what stays of exp(x + bias) / sum of exp(x)), not below 0."""
    if not isinstance(constraint, Constraint):
        return 0.0
    y_V = x_V.copy()
    for token, nats in constraint.bias.items():
        y_V[token] += nats
    allowed = set(range(len(x_V))) if constraint.allowed is None else set(constraint.allowed)
    if constraint.allowed is not None and constraint.eos == "allow":
        allowed |= eos
    if constraint.eos == "forbid":
        allowed -= eos
    if constraint.forced:
        allowed, y_V = {constraint.forced[0]}, x_V.copy()
    kept = sorted(allowed) or sorted(eos)
    return max(0.0, float(np.logaddexp.reduce(x_V) - np.logaddexp.reduce(y_V[kept])))
