"""What the reader of a request has got, and how the request goes on elsewhere without a token doubled or missing.

    had = Delivered(request)
    engine.submit(had.begin())
    for event in had.take(engine.step()): ...     # pass on
    engine_2.submit(had.begin())                  # the first engine is gone, or gave the row's slot away
    for event in had.take(engine_2.step()): ...   # only what the reader lacks

One seed, one text makes it exact. An engine that cannot resume a row (vLLM, where its own generator draws) says
BadResume; the row then runs from its start and what the reader has is left out. A token that comes otherwise than the
one that was delivered ends its sample with an error. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from raydecode.events import Event, Fault, OutcomeEvent, StepEvent, TextEvent, TokenEvent
from raydecode.request import Request


class Delivered:
    """ids: of each sample, as its reader has them; over: samples whose outcome the reader has; runs: begun so far
    diverged: a token came otherwise than the one delivered, so the engine may still run a sample that is over

    A step's events are taken as one: the bytes that a reader has are then those that could be shown behind its ids.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._n = max(1, request.decoding.n)
        self.ids = [list(request.resumed(sample)) for sample in range(self._n)]
        self.over: set[int] = set()
        self.runs = 0
        self.diverged = False
        self._shown = [0] * self._n  # bytes of text events that the reader has
        self._at = [0] * self._n  # where this run's next text event begins
        self._from = [0] * self._n  # output index from which on steps are news
        self._resumable = True
        self._refusals = 0

    @property
    def done(self) -> bool:
        return len(self.over) == self._n

    @property
    def refused(self) -> bool:
        """This run came to nothing because its engine cannot resume the row: the next begins at the start."""
        return not self.done and self._refusals == self._n - len(self.over)

    def begin(self) -> Request:
        """The request for the next run: as it is, then with what the reader has."""
        self.runs, self._refusals = self.runs + 1, 0
        if self.runs == 1:
            return self.request
        self._from = [len(ids) for ids in self.ids]
        if not self._resumable:
            self._at = [0] * self._n
            return self.request
        self._at = list(self._shown)
        return dataclasses.replace(self.request, resume=tuple(map(tuple, self.ids)) if any(self.ids) else ())

    def take(self, events: Iterable[Event]) -> list[Event]:
        """Those that the reader lacks."""
        return [event for event in map(self.new, events) if event is not None]

    def new(self, event: Event) -> Event | None:
        """The event, what of it the reader lacks, or nothing."""
        sample = event.row.sample
        if sample in self.over:
            return None
        match event:
            case TokenEvent(t=t, token=token):
                ids = self.ids[sample]
                if t < len(ids) and ids[t] == token:
                    return None
                if t != len(ids):
                    return self._diverged(event)
                ids.append(token)
            case TextEvent(bytes=text):
                begin, shown = self._at[sample], self._shown[sample]
                self._at[sample] = end = begin + len(text)
                if end <= shown:
                    return None
                self._shown[sample] = end
                return dataclasses.replace(event, bytes=text[shown - begin :]) if shown > begin else event
            case StepEvent(t0=t0):
                return event if t0 >= self._from[sample] else None
            case OutcomeEvent(error=error):
                if self.runs > 1 and error is not None and error.kind == "BadResume":
                    self._resumable = False
                    self._refusals += 1
                    return None
                self.over.add(sample)
        return event

    def _diverged(self, event: TokenEvent) -> OutcomeEvent:
        ids = self.ids[event.row.sample]
        was = f"{ids[event.t]} was sent" if event.t < len(ids) else f"only {len(ids)} were sent"
        message = f"output token {event.t} is {event.token} now and {was} before: the stream cannot go on exactly"
        self.over.add(event.row.sample)
        self.diverged = True
        return OutcomeEvent(event.row, "error", tuple(ids), b"", Fault("engine", "Diverged", message))
