"""Monitors for tests: a grammar with forced tokens, an entropy stop, a slow service, a bad word; and broken twins."""

from __future__ import annotations

import itertools
from typing import Any

from pydantic import Field

from raydecode import registry
from raydecode.constraint import Constraint, Continue, Pending, Stop, Verdict
from raydecode.contracts import Effects, Host, Needs, Options
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Request

A, B, OPEN, CLOSE, EOS = range(5)


class Watching:
    """What the test monitors share: no needs, no constraint, no verdict; the report is the state."""

    needs = Needs()
    effects = Effects()

    def open(self, request: Request, host: Host, options: Options) -> Any:
        return ()

    def observe(self, state: Any, event: TokenEvent) -> Any:
        return state

    def constrain(self, state: Any) -> Constraint | Pending | None:
        return None

    def verdict(self, state: Any) -> Verdict:
        return Continue()

    def score(self, state: Any) -> float | None:
        return None

    def close(self, state: Any, outcome: OutcomeEvent) -> Any:
        return repr(state)


class Brackets(Watching):
    """Brackets nest to depth 2; after "((" the tokens "))" are forced; a text ends at depth 0 only."""

    def open(self, request: Request, host: Host, options: Options) -> tuple[int, int]:
        return 0, 0  # depth, brackets opened in a row

    def observe(self, state: tuple[int, int], event: TokenEvent) -> tuple[int, int]:
        depth, run = state
        match event.token:
            case 2:
                return depth + 1, run + 1
            case 3:
                return depth - 1, 0
            case _:
                return depth, 0

    def constrain(self, state: tuple[int, int]) -> Constraint:
        depth, run = state
        if run == 2:
            return Constraint(forced=(CLOSE, CLOSE), eos="forbid")
        if depth == 2:
            return Constraint(allowed=frozenset({CLOSE}), eos="forbid")
        allowed = {A, B, OPEN} | ({CLOSE} if depth else set())
        return Constraint(allowed=frozenset(allowed), eos="forbid" if depth else "allow")


class EntropyStop(Watching):
    """Stop when the mean entropy of five tokens or more is low."""

    class Options(registry.Options):
        below: float = Field(default=1.1, ge=0, description="nats", examples=[1.1])

    needs = Needs(entropy=True, logp=True)

    def open(self, request: Request, host: Host, options: Options) -> tuple[float, float, int]:
        return options["below"], 0.0, 0

    def observe(self, state: tuple[float, float, int], event: TokenEvent) -> tuple[float, float, int]:
        assert event.entropy is not None
        assert event.logp is not None
        return state[0], state[1] + event.entropy, state[2] + 1

    def verdict(self, state: tuple[float, float, int]) -> Verdict:
        below, total, count = state
        return Stop("low entropy") if count >= 5 and total / count < below else Continue()

    def score(self, state: tuple[float, float, int]) -> float:
        return -state[1]


class BadWord(Watching):
    """Stop when the text contains a word, and take it off the end; the word may span tokens."""

    class Options(registry.Options):
        word: str = Field(default="ba", min_length=1, description="bytes of this text", examples=["ba", "()"])

    def open(self, request: Request, host: Host, options: Options) -> tuple[bytes, bytes, int]:
        return options["word"].encode(), b"", 0  # word, unread end of the text, bytes to cut (0 = not found)

    def observe(self, state: tuple[bytes, bytes, int], event: TokenEvent) -> tuple[bytes, bytes, int]:
        word, tail, _ = state
        text = tail + event.bytes
        at = text.find(word)
        return word, text[max(0, len(text) - len(word) + 1) :], len(text) - at if at >= 0 else 0

    def verdict(self, state: tuple[bytes, bytes, int]) -> Verdict:
        return Stop("bad word", state[2]) if state[2] else Continue()


class BiasA(Watching):
    """Make "a" likelier, never forbid anything."""

    def constrain(self, state: Any) -> Constraint:
        return Constraint(bias={A: 1.0, B: -0.5})


class Hinting(Watching):
    """Say that "ab" probably follows: a free draft, never binding."""

    effects = Effects(exact=True)

    def constrain(self, state: Any) -> Constraint:
        return Constraint(hint=(A, B))


def members(tokens: list[int]) -> list[int]:
    """The service of `SlowMembers`: what may follow, by the length of the text."""
    return [A, OPEN, EOS] if len(tokens) % 2 else [B, CLOSE]


class SlowMembers(Watching):
    """After a "b", ask the service `members` what may follow; the row is parked until it answers."""

    rehearsal = {"members": members}

    def open(self, request: Request, host: Host, options: Options) -> tuple[int, ...]:
        self.host = host
        return ()

    def observe(self, state: tuple[int, ...], event: TokenEvent) -> tuple[int, ...]:
        return (*state, event.token)

    def constrain(self, state: tuple[int, ...]) -> Constraint | Pending | None:
        if not state or state[-1] != B:
            return None
        answer = self.host.ask("members", list(state))
        return answer if isinstance(answer, Pending) else Constraint(allowed=frozenset(answer))

    def close(self, state: tuple[int, ...], outcome: OutcomeEvent) -> Any:
        return list(state)


class Scripted(Watching):
    """Says what its options say, from output index `at` on: for tests of the engine's own rules."""

    class Options(registry.Options):
        what: str = Field(default="none", description="a key of SAYS", examples=["none"])
        at: int = Field(default=1, ge=0, description="output index", examples=[1])

    def open(self, request: Request, host: Host, options: Options) -> tuple[str, int, int]:
        if options["what"] == "raise in open":
            raise RuntimeError("no start")
        return options["what"], options["at"], 0

    def observe(self, state: tuple[str, int, int], event: TokenEvent) -> tuple[str, int, int]:
        if state[0] == "raise in observe" and event.t >= state[1]:
            raise RuntimeError("no sight")
        return state[0], state[1], event.t + 1

    def constrain(self, state: tuple[str, int, int]) -> Constraint | Pending | None:
        what, at, t = state
        if t < at:
            return None
        if what == "raise in constrain":
            raise RuntimeError("no rule")
        return SAYS.get(what)

    def verdict(self, state: tuple[str, int, int]) -> Verdict:
        what, at, t = state
        if t <= at or not what.startswith("cut "):
            return Continue()
        return Stop("scripted", int(what.removeprefix("cut ")))

    def close(self, state: tuple[str, int, int], outcome: OutcomeEvent) -> Any:
        if state[0] == "raise in close":
            raise RuntimeError("no end")
        return state[2]


SAYS: dict[str, Constraint] = {
    "empty": Constraint(allowed=frozenset()),
    "empty is an error": Constraint(allowed=frozenset(), on_empty="error"),
    "foreign allowed": Constraint(allowed=frozenset({1, 99})),
    "foreign bias": Constraint(bias={-1: 2.0}),
    "foreign forced": Constraint(forced=(77,)),
    "forced": Constraint(forced=(A, B, A)),
    "no eos": Constraint(eos="forbid"),
    "only a": Constraint(allowed=frozenset({A})),
}


# ---------------------------------------------------------------------------------------------------- broken twins
class Mutating(Watching):
    """Twin: one list for all states."""

    def open(self, request: Request, host: Host, options: Options) -> list[int]:
        return []

    def observe(self, state: list[int], event: TokenEvent) -> list[int]:
        state.append(event.token)
        return state

    def constrain(self, state: list[int]) -> Constraint | None:
        return Constraint(bias={A: 0.1 * len(state)})


class Nosy(Watching):
    """Twin: counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = itertools.count()

    def constrain(self, state: Any) -> Constraint:
        return Constraint(bias={A: 0.01 * next(self.asked)})


class Gossiping(Watching):
    """Twin: its state depends on the rows it met before."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    def open(self, request: Request, host: Host, options: Options) -> int:
        self.met.add(request.id)
        return len(self.met)


class CallsItselfExact(Watching):
    """Twin: says that it changes nothing, and forbids "b"."""

    effects = Effects(exact=True)

    def constrain(self, state: Any) -> Constraint:
        return Constraint(allowed=frozenset({A, OPEN, CLOSE, EOS}))


class WordAtTokenEnd(BadWord):
    """Twin: looks only at the last token's end, where a token may hold the word and go on."""

    def observe(self, state: tuple[bytes, bytes, int], event: TokenEvent) -> tuple[bytes, bytes, int]:
        word, tail, _ = state
        text = tail + event.bytes
        return word, text[-8:], len(word) if text.endswith(word) else 0


class SourceSpy(Watching):
    """Stops at the second token that is neither sampled nor forced: harmless until an engine tells it of drafts."""

    def open(self, request: Request, host: Host, options: Options) -> int:
        return 0

    def observe(self, state: int, event: TokenEvent) -> int:
        return state + (event.source not in ("sampled", "forced"))

    def verdict(self, state: int) -> Verdict:
        return Stop("spy") if state >= 2 else Continue()


HONEST = (Brackets, EntropyStop, BadWord, BiasA, Hinting, SourceSpy)
TWINS = (SlowMembers, Scripted, Mutating, Nosy, Gossiping, CallsItselfExact, WordAtTokenEnd)
