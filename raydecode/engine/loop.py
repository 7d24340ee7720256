"""The step: continuous batching over one lane. Read `step`; the rest is its vocabulary (who runs: `schedule`)."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from raydecode import registry
from raydecode.constraint import Pending
from raydecode.contracts import Needs, Slope
from raydecode.engine.admission import fit_prompt, fit_source
from raydecode.engine.blame import blame
from raydecode.engine.cards import complete, refuse
from raydecode.engine.choice import Choice
from raydecode.engine.cost import CostCurve, measure, once, rehearsal, told
from raydecode.engine.draft import Drafters
from raydecode.engine.ending import settled
from raydecode.engine.host import ServiceHost
from raydecode.engine.inside import asked, hooks, needs_of, refuse_lanes, refuse_sites, united
from raydecode.engine.lane import Chunk, Lane, Outputs, SlopeLane
from raydecode.engine.rounds import Rounds
from raydecode.engine.rows import Row
from raydecode.engine.schedule import Schedule
from raydecode.engine.tally import KNOWN, NONE
from raydecode.engine.walk import Methods, Visit, walk
from raydecode.errors import Refused, RowError
from raydecode.events import Event, Fault, OutcomeEvent, StepEvent, TextEvent
from raydecode.request import DecodingSpec, Prompt, Request, RowId
from raydecode.tree import TokenTree

DRAFTER = "decoding.drafter"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A forward of the step: rows that decode, new tokens of all, how long it took."""

    rows: int
    tokens: int
    seconds: float


class Loop:
    """An `Engine` over a `Lane`.

    chunk:    most prompt tokens fed per step, over all rows
    stream:   also send TextEvent and StepEvent
    services: name -> function, for monitors that ask
    given:    (room, name) -> live object, for methods that load something; others are made here, once
    lanes:    models to draft with, by the names that `Forward.lane` gives them; each with as many slots as `lane`
    curve:    what calls cost, for `drafter: auto`; None: measured when the first row asks for it
    """

    name = "loop"

    def __init__(
        self,
        lane: Lane,
        *,
        chunk: int = 512,
        stream: bool = False,
        services: Mapping[str, Callable[[Any], Any]] | None = None,
        given: Mapping[tuple[str, str], Any] | None = None,
        lanes: Mapping[str, Lane] | None = None,
        curve: CostCurve | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lane, self.stream, self.clock = lane, stream, clock
        self.host = ServiceHost(lane.token_bytes, lane.eos, services)
        self._live: dict[tuple[str, str], Any] = dict(given or {})
        self._monitor = partial(self.method, "monitors")
        self._intervention = partial(self.method, "interventions")
        self.choice = Choice(self.name, curve)
        slope = self._slope if getattr(lane, "differentiable", False) else None
        contend = getattr(lane, "contend", None)
        self._methods = Methods(partial(self.method, "samplers"), self._monitor, lane.sites, slope, contend)
        self._rounds = Rounds(lane, lanes or {}, self._methods, self._intervention, self.host, chunk=chunk, clock=clock)
        self._drafters = Drafters(
            partial(self.method, "drafters"), self._monitor, self._rounds, self.choice, clock=clock
        )
        self._rows = Schedule(lane, chunk, clock)
        self._outbox: list[Event] = []
        self.steps = 0

    # ------------------------------------------------------------------ the contract
    def refuse(self, spec: DecodingSpec) -> Refused | None:
        refused = refuse(self.name, spec)
        if refused:
            return refused
        sites = self.lane.sites
        readable, differentiable = getattr(self.lane, "readable", ()), getattr(self.lane, "differentiable", False)
        arms = [(f"{DRAFTER}.among[{i}]", arm) for i, arm in enumerate(registry.among(spec.drafter))]
        for place, one in ((DRAFTER, spec), *((place, DecodingSpec(drafter=arm)) for place, arm in arms)):
            refused = refuse_lanes(self.name, one, self._rounds.names, sites)
            refused = refused or refuse_sites(self.name, one, sites, readable, differentiable)
            if refused:
                return refused.moved(DRAFTER, place)
        return None

    def submit(self, request: Request) -> None:
        try:
            self._rows.waiting.extend(self._rows_of(request))
        except Exception as error:
            for sample in range(max(1, request.decoding.n)):
                row = Row(RowId(request.id, sample), request, request.decoding, 0, [], 0, 0, submitted_at=self.clock())
                row.fail("request", error)
                self._outbox.append(self._outcome(row))

    def step(self) -> list[Event]:
        events, self._outbox = self._outbox, []
        self._measure()
        self._rows.admit()
        visits, chunks = self._plan()
        if chunks:
            by_slot = {row.slot: row for row in self._rows.running}
            acting = hooks(chunks, by_slot, self._intervention)
            began = self.clock()
            outputs = self.lane.forward(chunks, united([visit.row for visit in visits]), acting)
            if visits and self.choice.wanted:
                outputs.logits_MV[0, 0].item()  # to be timed: a device answers when it is done
            call = Call(len(visits), sum(len(chunk) for chunk in chunks), self.clock() - began)
            walk(visits, outputs, self._methods, self.host, events)
            self._settle(visits, outputs, call, events)
            self._drafters.read(chunks[len(visits) :], by_slot, outputs, self.lane.eos)
            self._blame(visits)
            self.steps += 1
        self._expire()
        self._retire(events)
        return events

    def cancel(self, id: str) -> None:
        for row in [*self._rows.waiting, *self._rows.running]:
            if row.id.request == id:
                row.reason = "cancelled"
        self._retire(self._outbox)

    def wait(self, timeout_s: float) -> bool:
        if self._outbox or not self._rows.running or any(not row.parked for row in self._rows.running):
            return True
        return self.host.wait(timeout_s)

    @property
    def busy(self) -> bool:
        return bool(self._rows.waiting or self._rows.running or self._outbox)

    # ------------------------------------------------------------------ what callers may look at
    @property
    def token_bytes(self) -> Sequence[bytes]:
        """Token id -> its bytes; empty for special ones."""
        return self.lane.token_bytes

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's ids. Raises RowError for one that cannot be read; may be asked from any thread."""
        return self.lane.encode(prompt)

    @property
    def drafting(self) -> str | None:
        """What `drafter: auto` measured and chose so far, in words."""
        return self.choice.said()

    @property
    def waiting(self) -> int:
        """Rows without a slot."""
        return len(self._rows.waiting)

    @property
    def running(self) -> tuple[RowId, ...]:
        """Rows that hold a slot."""
        return tuple(row.id for row in self._rows.running)

    def method(self, room: str, name: str) -> Any:
        """The live object of a method; one per engine."""
        if (room, name) not in self._live:
            self._live[room, name] = registry.get(room, name).factory()
        return self._live[room, name]

    def check_integrity(self) -> None:
        """Invariants of slots and pages, for tests."""
        self._rows.check()
        self._rounds.check()

    # ------------------------------------------------------------------ the parts of a step
    def _rows_of(self, request: Request) -> list[Row]:
        """One row per sample, its methods open. Raises for what is the request's own fault."""
        refused = self.refuse(request.decoding)
        if refused:
            raise RowError("request", "Refused", str(refused))
        spec = complete(request.decoding)
        if spec.n < 1 or spec.max_tokens < 1:
            given = f"got n = {spec.n}, max_tokens = {spec.max_tokens}"
            raise RowError("request", "BadLimit", f"n and max_tokens are at least 1, {given}")
        source, ids, limit = self._prompt(request, spec)
        wrong = request.bad_resume(limit)
        if wrong:
            raise RowError("request", "BadResume", wrong)
        samplers = [self.method("samplers", card.name) for card in spec.sampler]
        monitors = [self._monitor(card.name) for card in spec.monitors]
        needs = Needs(logp=spec.logprobs is not None, top_k=spec.logprobs or 0)
        for card, monitor in zip(spec.monitors, monitors, strict=True):
            needs |= needs_of(monitor, card, self.lane.sites)
        horizons = [self._intervention(card.name).horizon(card.options) for card in spec.interventions]
        inside = asked(spec, self.lane.sites)
        chosen = ""
        if spec.drafter and registry.chooses(spec.drafter):
            chosen, self.choice.wanted = repr(spec.drafter), True
            for card in self.choice.cards(spec.drafter):
                inside |= asked(DecodingSpec(drafter=card), self.lane.sites)
            self.choice.reading |= inside.prompt
        rows: list[Row] = []
        for sample in range(spec.n):
            row = Row(RowId(request.id, sample), request, spec, request.noise_key(sample), list(ids), len(ids), limit)
            row.source, row.replay, row.submitted_at = source, request.resumed(sample), self.clock()
            row.needs, row.inside, row.chosen = needs, inside, chosen
            row.horizon = min((horizon for horizon in horizons if horizon is not None), default=None)
            row.leader = rows[0] if rows else None
            if row.replay and not spec.monitors:  # what was shown before: the caller has those bytes
                row.shown = settled(b"".join(self.host.token_bytes[id] for id in row.replay), spec.stop)
            for card, sampler in zip(spec.sampler, samplers, strict=True):
                row.sampler_state.append({name: float(start(card.options)) for name, start in sampler.columns.items()})
            for card, monitor in zip(spec.monitors, monitors, strict=True):
                row.monitor_state.append(monitor.open(request, self.host, card.options))
            rows.append(row)
        return rows

    def _prompt(self, request: Request, spec: DecodingSpec) -> tuple[tuple[int, ...], list[int], int]:
        """What an encoder reads (empty without one), what the row begins with, and how many tokens may follow."""
        ids, size = self.lane.encode(request.prompt), len(self.host.token_bytes)
        given = itertools.chain(ids, *request.resume)
        foreign = next((id for id in given if not 0 <= id < size), None)
        if foreign is not None:
            raise RowError("request", "BadToken", f"token {foreign} is not in a vocabulary of {size}")
        source: tuple[int, ...] = ()
        overflow = request.overflow
        if hasattr(self.lane, "starts"):  # the prompt is the encoder's, which has a context of its own
            source = fit_source(ids, self.lane.context, overflow)
            ids, overflow = list(self.lane.starts), "shorten" if overflow == "shorten" else "error"
        fit = fit_prompt(len(ids), spec.max_tokens, self.lane.context, overflow)
        if isinstance(fit, Fault):
            raise RowError(fit.stage, fit.kind, fit.message)
        return source, list(fit.cut(ids)), fit.max_tokens

    def _plan(self) -> tuple[list[Visit], list[Chunk]]:
        """This step's chunks: a tree for rows that decode, a part of their prompt for rows that still read."""
        ready, reading = self._rows.turn(lambda row: row.parked and self._still_parked(row), self._tells)
        others = sum(row.unread for row in ready) + sum(len(chunk) for chunk in reading)
        trees = self._drafters.trees(ready, len(self.host.token_bytes), self.lane.eos, others)
        visits, chunks, base = [], [], 0
        for row, tree in zip(ready, trees, strict=True):
            prefix = tuple(row.context[row.cached : -1])
            if not self.lane.reserve(row.slot, row.cached, len(row.context) - 1 + len(tree)):
                tree = TokenTree.root(row.pending)  # a draft takes no row's memory
            chunks.append(Chunk(row.slot, row.cached, prefix, tree))
            visits.append(Visit(row, tree, base))
            row.cached = len(row.context) - 1
            row.forwards += 1
            base += len(tree)
        return visits, chunks + reading

    def _tells(self, row: Row, count: int) -> bool:
        """Whether so many tokens of a row's prompt are told to drafters that learn from them."""
        return not row.chosen or bool(self.choice.listeners(row, count))

    def _still_parked(self, row: Row) -> bool:
        """Ask the monitors again; their answers are kept, so asking is free."""
        try:
            states = zip(row.spec.monitors, row.monitor_state, strict=True)
            answers = [self._monitor(card.name).constrain(state) for card, state in states]
        except Exception as error:
            row.fail("monitor", error)
            return True
        row.parked = any(isinstance(answer, Pending) for answer in answers)
        return row.parked

    def _measure(self) -> None:
        """What calls cost here, once there is a row whose drafter is chosen, in slots that nobody holds."""
        choice, longest = self.choice, self.lane.context - 1
        if choice.missing and self._rows.free:
            free = self._rows.free
            run, reads = (rehearsal(self.lane, free, self.clock, reads=reads) for reads in (False, True))
            if choice.curve is None:
                alike = getattr(self.lane, "alike", None)
                key = alike and (alike, len(free), longest)
                choice.curve = once(key, lambda: measure(run, len(free), longest))
            if choice.curve and choice.missing:
                choice.curve.told_s = told(run, reads, longest)

    def _settle(self, visits: list[Visit], outputs: Outputs, call: Call, events: list[Event]) -> None:
        """Keep accepted paths, let drafters learn, let other rows have what was read."""
        self.choice.timed(call.rows, call.tokens, call.tokens - sum(len(v.tree) for v in visits), call.seconds)
        for visit in visits:
            row, path = visit.row, tuple(visit.path)
            self.lane.keep(row.slot, row.cached, path)
            row.cached += len(path)
            drafted, accepted = len(visit.tree) - 1, max(len(path) - 1, 0)
            if not row.first_token_at and path:
                row.first_token_at = self.clock()
            row.drafted += drafted
            row.accepted += accepted
            name = row.pick.name if row.pick and drafted else None
            if row.spec.drafter:
                verify_s = call.seconds * drafted / call.tokens
                row.verify_s += verify_s
                row.tally(name or (KNOWN if drafted else NONE)).step(visit.tree, path, len(visit.emitted), verify_s)
                self._drafters.observe(row, visit.tree, path, tuple(visit.emitted), outputs, visit.base)
                self.choice.learn(row, visit.emitted, accepted, drafted, call.rows, call.tokens)
            if self.stream:
                events.append(StepEvent(row.id, row.t - len(path), visit.tree, path, tuple(visit.emitted), name))
                self._show(row, events)
        self._rows.publish()
        self._rows.fork()

    def _slope(self, row: Row, site: str, loss: Callable[[Any], Any], shift_D: Any) -> Slope:
        """The path that the row's context now is, run again under its own interventions."""
        chunk = Chunk(row.slot, 0, tuple(row.context[:-1]), TokenTree.root(row.pending))
        acting = hooks([chunk], {row.slot: row}, self._intervention)
        return cast(SlopeLane, self.lane).slope(row.context, site, loss, acting, shift_D)

    def _blame(self, visits: list[Visit]) -> None:
        """Say where in the model a row's NaN arose."""
        for row in (visit.row for visit in visits):
            if row.fault and (row.fault.stage, row.fault.kind) == ("model", "BadLogits"):
                where = blame(self.lane, row, self._intervention)
                if where:
                    message = f"{row.fault.message}; the first value that is not finite arose in {where}"
                    row.fault = dataclasses.replace(row.fault, message=message)

    def _expire(self) -> None:
        for row in self._rows.running:
            most = row.spec.deadline_s
            if most is not None and row.reason is None and self.clock() - row.admitted_at > most:
                row.fail("engine", RowError("engine", "Deadline", f"held its slot for more than {most} s"))

    def _retire(self, events: list[Event]) -> None:
        """Free the slots of rows that ended and say how they did."""
        for row in self._rows.retire():
            self._rounds.release(row)
            if self.stream and row.reason != "cancelled":
                self._show(row, events)
            events.append(self._outcome(row))

    def _outcome(self, row: Row) -> OutcomeEvent:
        stats = row.stats(self.clock(), self._drafters.size(row))
        assert row.reason is not None
        outcome = OutcomeEvent(
            row.id, row.reason, row.output, row.text, row.fault, tuple(row.logprobs), cause=row.cause, stats=stats
        )
        if not (row.monitor_state or row.sampler_state):
            return outcome
        reports, room = [], "monitor"
        try:
            for card, monitor_state in zip(row.spec.monitors, row.monitor_state, strict=True):
                reports.append(self._monitor(card.name).close(monitor_state, outcome))
            room = "sampler"
            for card, state in zip(row.spec.sampler, row.sampler_state, strict=True):
                report = getattr(self.method("samplers", card.name), "report", None)
                if report and row.t:
                    reports.append({"sampler": card.name, **report(card.options, state, row.t)})
        except Exception as error:
            row.fail(room, error)
            return OutcomeEvent(row.id, "error", row.output, row.text, row.fault, tuple(row.logprobs), stats=stats)
        return dataclasses.replace(outcome, reports=tuple(reports))

    def _show(self, row: Row, events: list[Event]) -> None:
        """Release the bytes that nothing can take back: no stop string begins there, no character is half written."""
        end = len(row.text)
        if not row.reason:
            if row.spec.monitors:
                return  # a verdict may cut any number of bytes
            end = settled(row.text, row.spec.stop)
        if end > row.shown:
            events.append(TextEvent(row.id, row.text[row.shown : end]))
            row.shown = end
