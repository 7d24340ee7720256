"""The commit log: one exclusively created record is the commit; everything visible follows from it.

| step of a commit | a crash right after | the next start |
|---|---|---|
| 1 a worker writes its part to `_tmp/<attempt>/`, durably | unreferenced or torn | deletes it, runs the rows again |
| 2 the record `_log/<v>.json` is created exclusively         | committed, invisible | publishes it |
| 3 the part is moved to its visible name                     | committed, visible   | nothing |

Law: visible is a subset of committed always, and equal after `Log.open`.

Fencing is the record number. A new process writes an `attempt` record where the old one would write its next, so the
old one finds its number taken, reads a higher attempt and leaves (`Fenced`), deleting nothing. A restart right after
`kill -9` does overlap with the old processes: they were seen alive 1.5 s later. The heartbeat only spares people the
accident of starting a job twice; nothing depends on its clock.

Reading it: history.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from raydecode.corpus.history import CHECKPOINT, parts_of, record_name, refuse_difference, replay
from raydecode.corpus.intervals import Span
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import FORMAT, InputFile, PartMeta, Record, State, suspicion
from raydecode.corpus.storage import Storage
from raydecode.errors import JobError, UserError

HEARTBEAT_S = 5.0
STALE_S = 30.0


class Fenced(JobError):
    """Another process has taken the log over. Leave; delete nothing."""


class Log:
    """The writer's side. One per process; not thread-safe. Build with `Log.open`."""

    def __init__(self, storage: Storage, state: State, owner: Owner, now: Callable[[], float]) -> None:
        self.storage, self.state, self.owner, self._now = storage, state, owner, now
        self.attempt = 0  # ours; 0 until we have one
        self._beats = 0

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        job: Mapping[str, object],
        inputs: Sequence[InputFile],
        schema: str,
        now: Callable[[], float],
        owner: Owner | None = None,
        takeover: bool = False,
        overwrite: bool = False,
    ) -> Log:
        """Take the output over: replay, check the job, write the attempt, finish what a crash interrupted.

        job:    what the texts depend on, as JSON values; compared with what the output was made with
        inputs: all files of the job (`inputs.discover`); those the log does not know yet join
        Raises UserError when another run is alive here or the job differs.
        """
        log = cls(storage, State(), owner or Owner.me(), now)
        wanted: Record = json.loads(json.dumps(job))
        in_flight = 0
        while True:
            replay(storage, log.state)
            if log.state.attempt:
                in_flight = _left_running(storage, log.state.attempt, now(), None if takeover else log.owner)
            void = overwrite and log.state.job is not None
            if log.state.job is not None and not void:
                refuse_difference(storage.url, log.state.job, wanted)
            try:
                if log.state.job is None or void:
                    log._put(
                        {
                            "kind": "job",
                            "format": FORMAT,
                            "job": wanted,
                            "schema": schema,
                            "inputs": [asdict(i) for i in inputs],
                        }
                    )
                    overwrite = False
                log._put(
                    {
                        "kind": "attempt",
                        "attempt": log.state.attempt + 1,
                        "rerun": 0 if void else in_flight,
                        **asdict(log.owner),
                    }
                )
            except Fenced:
                continue  # somebody wrote meanwhile: read on
            break
        log.attempt = log.state.attempt
        known = {one.number for one in log.state.inputs}
        joining = [asdict(one) for one in inputs if one.number not in known]
        if joining:
            log._put({"kind": "inputs", "inputs": joining})
        log._recover()
        log.beat(0)
        return log

    def introduce(self, engine: Record) -> None:
        """An engine of a kind that has not worked on this output yet, before it gets a row."""
        self._put({"kind": "engine", "engine": engine})

    def commit(self, parts: Sequence[PartMeta]) -> None:
        """Make the parts' rows done and visible. The caller has checked that no cover overlaps `state.done`."""
        whole = self.state.done.copy()
        for part in parts:
            if whole.intersect(part.cover):
                raise ValueError(f"part {part.name} covers rows that are committed already")
            whole.update(part.cover)
        self._put({"kind": "commit", "parts": [part.to_json() for part in parts]})
        for part in parts:
            self._publish(part)

    def blame(
        self,
        hunt: Sequence[Sequence[Span]],
        condemned: Sequence[Span],
        tries: Mapping[Span, int],
        *,
        rerun: int,
        worker: str,
        cause: str,
    ) -> None:
        """A worker died. What is given replaces what was known, so that a restart goes on with the hunt."""
        record = {"kind": "blame", "worker": worker, "cause": cause, "rerun": rerun}
        self._put(record | suspicion(hunt, condemned, tries))

    def finish(self, summary: Record) -> None:
        """The job is complete: `finished` will say so without a run."""
        for part in list(self.state.pending.values()):
            self._publish(part)
        self._put({"kind": "finish", "summary": summary})
        self.beat(0, closed=True)

    def beat(self, in_flight: int, closed: bool = False) -> None:
        """Every HEARTBEAT_S. `in_flight`: rows in slots, counted as run again if this process dies.
        Two files in turn: one is whole whenever the other is being written."""
        self._beats += 1
        data = {
            "attempt": self.attempt,
            "beat": self._beats,  # which is the later one; a clock may be set back between the two
            "at": self._now(),
            "in_flight": in_flight,
            "closed": closed,
            **asdict(self.owner),
        }
        try:
            self.storage.write(_heartbeat(self.attempt, self._beats % 2), json.dumps(data).encode())
        except FileNotFoundError:  # a newer attempt removes the heartbeats of older ones, this one while it was written
            raise Fenced(f"{self.storage.url}: another run took over") from None

    def _put(self, record: Record) -> None:
        if self.state.next and self.state.next % CHECKPOINT == 0:
            self._create({"kind": "checkpoint", "state": self.state.checkpoint(list(self.state.pending.values()))})
        self._create(record)

    def _create(self, record: Record) -> None:
        record = (
            {"kind": record["kind"], "id": uuid.uuid4().hex, "at": self._now()} | {"attempt": self.attempt} | record
        )
        name = record_name(self.state.next)
        try:
            self.storage.create_exclusive(name, json.dumps(record, separators=(",", ":")).encode())
        except FileExistsError:
            raise Fenced(f"{self.storage.url}: another run took over at {name}; this one stops") from None
        self.state.apply(record)

    def _publish(self, part: PartMeta) -> None:
        for source, target in part.moves():
            self.storage.publish(source, target)
        self.state.pending.pop(part.name, None)

    def _recover(self) -> None:
        """Publish what is committed, delete what no record names. Anything here may be repeated or interrupted."""
        for part in list(self.state.pending.values()):
            try:
                self._publish(part)
            except FileNotFoundError as error:
                raise JobError(
                    f"{self.storage.url}: committed part {part.name} is gone; raydecode verify lists the damage"
                ) from error
        for path in self.storage.list("_tmp"):
            owner = path.split("/")[1]
            if owner.isdigit() and int(owner) < self.attempt:
                self.storage.remove(path)
        for path in self.storage.list("_log"):
            beat = path.startswith("_log/heartbeat-") and int(path.split("-")[1]) < self.attempt
            if beat or path.endswith(".tmp"):
                self.storage.remove(path)
        if not self.state.swept:
            for old in parts_of(self.storage, stop=self.state.job_at, start=0):
                for _, target in old.moves():
                    self.storage.remove(target)
            self._put({"kind": "swept"})


def _heartbeat(attempt: int, which: int) -> str:
    return f"_log/heartbeat-{attempt:06d}-{which}"


def _left_running(storage: Storage, attempt: int, now: float, me: Owner | None) -> int:
    """Rows in flight at the last heartbeat of a run that ended otherwise than in peace: they run again.
    UserError when it may be alive and is another's than `me`; None takes over from whomever."""
    beats = []
    for i in range(2):
        try:
            beats.append(json.loads(storage.read(_heartbeat(attempt, i))))
        except (FileNotFoundError, ValueError):
            continue  # none yet, or torn by a crash
    if not beats:
        return 0
    last = max(beats, key=lambda one: one["beat"])
    owner = Owner(last["host"], last["pid"], last["born"])
    if last["closed"]:
        return 0
    seen = owner.alive()
    age = now - last["at"]
    if me not in (None, owner) and (seen or (seen is None and age < STALE_S)):
        raise UserError(
            f"another run is writing here: process {owner.pid} on {owner.host}, last seen {age:.0f} s ago",
            field="output.path",
            value=storage.url,
            hint=f"wait for it or stop it; if it is gone, wait {STALE_S:.0f} s or pass --takeover",
        )
    return int(last["in_flight"])
