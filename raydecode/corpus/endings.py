"""Why a job ends before it is done: rules over counts, each with the message that the user reads.

| rule | ends the job |
|---|---|
| barren deaths  | so many workers died, one after another, for no row's fault and without a commit between |
| start failures | so many constructors failed one after another: the next would as well |
| error rate     | more rows failed than `max_error_rate` allows, once enough of them are there, and at the end |
| silence        | no token, commit or lease for `idle_s` (`start_s` before anything was read or anybody came) |
"""

from __future__ import annotations

from collections.abc import Mapping

from raydecode.corpus.messages import Limits
from raydecode.corpus.places import Places
from raydecode.corpus.records import State
from raydecode.corpus.workers import Worker


class Endings:
    """The counts behind the rules. Methods return the reason to end, or None."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._barren: list[str] = []
        self._start_failures: list[str] = []

    def barren_death(self, what: str) -> str | None:
        self._barren.append(what)
        if len(self._barren) < self._limits.barren_deaths:
            return None
        return f"{len(self._barren)} workers died without committing a row in between; the last: {self._barren[-1]}"

    def start_failure(self, message: str) -> str | None:
        self._start_failures.append(message)
        return f"workers do not start: {message}" if len(self._start_failures) >= self._limits.start_failures else None

    def committed(self) -> None:
        """Rows came through: earlier deaths count no more."""
        self._barren.clear()

    def came(self) -> None:
        """A worker is there: earlier failures to start count no more."""
        self._start_failures.clear()

    def too_many_errors(self, state: State) -> str | None:
        limit = self._limits.max_error_rate
        if limit is None or state.errors == 0 or state.errors / state.weight <= limit:
            return None
        return (
            f"{state.errors} of {state.weight} rows failed ({state.errors / state.weight:.1%}), max_error_rate allows "
            f"{limit:.1%}: look at the `error` column; what is committed stays, a higher limit goes on"
        )

    def silence(self, quiet_s: float, places: Places, workers: Mapping[str, Worker]) -> str | None:
        started = any(me.assigned for me in workers.values()) or (places.input_done and workers)
        if quiet_s <= (self._limits.idle_s if started else self._limits.start_s):
            return None
        waiting = list(places.waiting(workers.values()))
        names = ", ".join(f"{s.input}:{s.start}-{s.stop}" for s in waiting[:5]) or (
            "the reading side delivers nothing" if not places.input_done else "none"
        )
        who = (
            ", ".join(f"{name} ({len(me.slots)} running, {me.waiting} waiting)" for name, me in workers.items())
            or "none"
        )
        return f"nothing happened for {quiet_s:.0f} s. Rows that wait (file:positions): {names}. Workers: {who}"
