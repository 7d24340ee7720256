"""The generation actors of a job: started, watched and replaced here, never by Ray.

Ray restarts an actor in place and sends its call again, for ever if need be: a row that kills engines would never be
found, and an old process and its successor would bear one name. So `max_restarts=0`, every process has a name of its
own, and a death is told to the ledger before a replacement starts.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.generation import EngineDied
from actors.ledger import Call
from raydecode.corpus.messages import Cause
from raydecode.errors import JobError, UserError

ANSWER_S = 5.0
ASK_AGAIN_S = 1.0  # while Ray says "unavailable" it says so at once
LOST_S = 60.0  # Ray declares a node dead after some 15 to 30 s without a sign


@dataclass(slots=True)
class _Member:
    name: str
    handle: Any
    starting: Any  # reference to start()'s answer, then None
    running: Any = None
    lost_at: float | None = None  # the connection broke then, and nobody knows yet why
    ask_at: float | None = None  # when to ask it again; until then nothing is pending

    @property
    def pending(self) -> Any:
        return self.starting if self.starting is not None else self.running

    def ask(self) -> None:
        """Any sign of life will do; a death is told in its place."""
        self.ask_at, answer = None, self.handle.stacks.remote()
        if self.starting is not None:
            self.starting = answer
        else:
            self.running = answer


class Pool:
    """spawn: (name, spare) -> actor handle (GenerationActor); a spare one may leave when it is idle
    size:   how many to keep alive; those without room wait in Ray's queue and join when a node does
    least:  how many of them are not spare
    ledger: where engines that came up, and deaths, are told
    about:  by name, what each engine said of itself, and when (Unix time) it was started, ready and ended
    """

    def __init__(self, spawn: Callable[[str, bool], Any], size: int, least: int, ledger: Call, prefix: str) -> None:
        self._spawn, self._size, self._least, self._ledger, self._prefix = spawn, size, least, ledger, prefix
        self._members: dict[str, _Member] = {}
        self._number = 0
        self.about: dict[str, dict[str, Any]] = {}

    def poll(self, patience_s: float = 0.0) -> None:
        """Start what is missing, notice what has started, left or died; with patience, sleep until something has.

        Raises what ends the job.
        """
        import ray

        while len(self._members) < self._size:
            self._start()
        for member in self._members.values():
            if member.ask_at is not None and time.monotonic() >= member.ask_at:
                member.ask()
        refs = {member.pending: member for member in self._members.values() if member.ask_at is None}
        if not refs:
            time.sleep(patience_s)
            return
        for ref in ray.wait(list(refs), num_returns=1, timeout=patience_s)[0]:
            self._advance(refs[ref], ref)

    @property
    def came_up(self) -> bool:
        """Some worker was ready at some time: the cluster has room for one."""
        return any("ready_at" in about for about in self.about.values())

    def kill(self, name: str, reason: str) -> None:
        """On the watchdog's order. Its stacks go into the message while it can still tell them."""
        import ray

        member = self._members.get(name)
        if member is None:
            return
        try:
            stacks = ray.get(member.handle.stacks.remote(), timeout=ANSWER_S)
        except Exception as error:
            stacks = f"(no stacks: {type(error).__name__})"
        print(f"worker {name}: {reason}\n{stacks}", file=sys.stderr)
        self._bury(member, "watchdog", f"{reason}\n{stacks}")

    def wait(self, patience_s: float) -> None:
        """The job has ended: let the workers commit what they hold and leave."""
        import ray

        running = {member.running: member for member in self._members.values() if member.starting is None}
        if running:
            left, _ = ray.wait(list(running), num_returns=len(running), timeout=patience_s)
            for ref in left:
                self._ask_facts(running[ref])

    def close(self) -> None:
        """End every process that is left."""
        for member in list(self._members.values()):
            self._remove(member)

    def _ask_facts(self, member: _Member) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            self.about[member.name] |= ray.get(member.handle.facts.remote(), timeout=ANSWER_S)

    def _remove(self, member: _Member) -> None:
        import ray

        ray.kill(member.handle, no_restart=True)
        del self._members[member.name]
        self.about[member.name]["ended_at"] = time.time()

    def _start(self) -> None:
        self._number += 1
        name = f"{self._prefix}{self._number}"
        self.about[name] = {"started_at": time.time()}
        handle = self._spawn(name, len(self._members) >= self._least)
        self._members[name] = _Member(name, handle, handle.start.remote())

    def _advance(self, member: _Member, ref: Any) -> None:
        import ray

        try:
            answer = ray.get(ref)
        except ray.exceptions.ActorUnavailableError as error:
            self._lost(member, error)
            return
        except ray.exceptions.RayError as error:
            self._failed(member, error)
            return
        if member.lost_at is not None:  # it lives, but nobody listens to its run any more
            self._bury(member, "node_loss", "the connection to it was lost for a moment")
        elif member.starting is not None:
            self.about[member.name] |= {**answer, "ready_at": time.time()}
            warning = self._ledger("introduce", answer)  # its promise is in the log before its first row
            if warning:
                print(warning, file=sys.stderr)
            member.starting, member.running = None, member.handle.run.remote()
        else:  # it left in peace; if rows are still missing, the next poll starts another
            self._ask_facts(member)
            self._remove(member)
            if answer in ("finished", "idle"):
                self._size = max(self._least if answer == "idle" else 0, len(self._members))

    def _lost(self, member: _Member, error: Exception) -> None:
        """Ray's word for a broken connection whose cause is not known yet: a crash, a dead node, a network that is
        away. The next answer knows; blame for rows depends on it."""
        now = time.monotonic()
        member.lost_at = member.lost_at or now
        if now - member.lost_at > LOST_S:
            self._bury(member, "node_loss", str(error))
        else:
            member.ask_at = now + ASK_AGAIN_S

    def _failed(self, member: _Member, error: Exception) -> None:
        raised = getattr(error, "cause", None)
        if isinstance(raised, UserError | JobError):
            raise raised
        self._bury(member, *cause_of(error))

    def _bury(self, member: _Member, cause: Cause, message: str) -> None:
        self._remove(member)
        if member.starting is None:
            self._ledger("died", member.name, cause, message)
        elif cause != "node_loss":
            self._ledger("start_failed", message)


def cause_of(error: Exception) -> tuple[Cause, str]:
    """Why an actor is gone. Only `crash` blames rows: what a node or the machine's memory does says nothing of them."""
    import ray

    raised = getattr(error, "cause", None)
    if isinstance(raised, ray.exceptions.RayError):  # what it called was gone: the ledger, a block's node
        return "node_loss", f"{type(raised).__name__}: {raised}"
    if raised is not None:  # an exception in the actor's own code
        text = str(raised) if isinstance(raised, EngineDied) else f"{type(raised).__name__}: {raised}"
        return "crash", text
    text = str(error)
    if getattr(error, "preempted", False) or "its node has died" in text or "node was terminated" in text:
        return "node_loss", text
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in text:
        return "memory", text
    return "crash", text
