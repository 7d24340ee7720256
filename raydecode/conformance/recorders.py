"""Methods that pass everything on and write down states: texts hide what state traces show.

A sampler that observes after the walk instead of inside it changed 0 of 15 short texts and every state trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from raydecode import registry
from raydecode.constraint import Constraint, Pending, Verdict
from raydecode.contracts import Columns, Host, Monitor, Options, Sampler, SamplerRows, StateColumns
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Request, RowId

Given = Mapping[tuple[str, str], Any]
"""(room, name) -> live object, as `engine.loop.Loop` takes it."""


class SamplerRecorder:
    """traces: noise key of a row -> [(output index, token, own logp, state columns after it)]."""

    def __init__(self, inner: Sampler) -> None:
        self.inner, self.needs, self.columns = inner, inner.needs, inner.columns
        self.traces: dict[int, list[tuple[Any, ...]]] = {}
        for name in ("report", "band", "any_width", "keeps_best", "settles"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    columns: StateColumns

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return self.inner.shape(x_RC, rows)

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        columns = self.inner.observe(rows, token_R, own_logp_R)
        if getattr(rows, "rehearsed", False):
            return columns
        for r, (key, t) in enumerate(zip(rows.keys_R, rows.t_R, strict=True)):
            state = {name: float(column[r]) for name, column in columns.items()}
            self.traces.setdefault(key, []).append((t, int(token_R[r]), float(own_logp_R[r]), state))
        return columns


class MonitorRecorder:
    """Its state is (the monitor's own, the trace so far), so that a fork or a replay carries its trace.

    traces: row -> ((event, the monitor's state after it), ...);  opened: row's request -> its first state
    """

    def __init__(self, inner: Monitor) -> None:
        self.inner, self.needs, self.effects = inner, inner.needs, inner.effects
        self.traces: dict[RowId, tuple[tuple[TokenEvent, Any], ...]] = {}
        self.opened: dict[str, Any] = {}

    def open(self, request: Request, host: Host, options: Options) -> Any:
        self.opened[request.id] = self.inner.open(request, host, options)
        return self.opened[request.id], ()

    def observe(self, state: Any, event: TokenEvent) -> Any:
        new = self.inner.observe(state[0], event)
        return new, (*state[1], (event, new))

    def constrain(self, state: Any) -> Constraint | Pending | None:
        return self.inner.constrain(state[0])

    def verdict(self, state: Any) -> Verdict:
        return self.inner.verdict(state[0])

    def score(self, state: Any) -> float | None:
        return self.inner.score(state[0])

    def close(self, state: Any, outcome: OutcomeEvent) -> Any:
        self.traces[outcome.row] = state[1]
        return self.inner.close(state[0], outcome)


def recorded() -> tuple[Given, Callable[[], dict[str, Any]]]:
    """Recorders for every registered sampler with state and every monitor; and a function that returns all traces."""
    recorders: dict[tuple[str, str], Any] = {}
    for method in registry.cards("samplers"):
        if not method.loads and method.factory().columns:
            recorders["samplers", method.name] = SamplerRecorder(method.factory())
    for method in registry.cards("monitors"):
        if not method.loads:
            recorders["monitors", method.name] = MonitorRecorder(method.factory())
    return recorders, lambda: {f"{room}/{name}": dict(one.traces) for (room, name), one in recorders.items()}
