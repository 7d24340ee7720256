"""What monitors say about the next token: a constraint before it is drawn, a verdict after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Constraint:
    """Binding for the next token of one row, unless said otherwise.

    allowed:  the only ids that may follow; None = all
    bias:     added to logits, nats
    forced:   ids that must follow, in this order (binding; also without drafts)
    hint:     ids that probably follow (a free draft, never binding)
    eos:      "forbid" masks every end-of-text id; "allow" adds them to `allowed`; "auto" leaves them as they are
    priority: of two different `forced`, the higher priority wins
    on_empty: when nothing is allowed: "eos" ends the row, "error" makes it an error row
    """

    allowed: frozenset[int] | None = None
    bias: Mapping[int, float] = field(default_factory=dict)
    forced: tuple[int, ...] = ()
    hint: tuple[int, ...] = ()
    eos: Literal["allow", "forbid", "auto"] = "auto"
    priority: int = 0
    on_empty: Literal["eos", "error"] = "eos"


@dataclass(frozen=True, slots=True)
class Pending:
    """The answer is not there yet: the row is parked, the others go on."""

    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Continue:
    """Nothing to say."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the row; `cut_bytes` are taken off the end of the text."""

    reason: str
    cut_bytes: int = 0


Verdict = Continue | Stop


def compose(constraints: Iterable[Constraint | Pending | None], eos: frozenset[int]) -> Constraint | Pending | None:
    """All monitors' constraints as one; None = free. Pending if any is, so that a row waits for all of them.

    allowed intersect, biases add, the `forced` of highest priority wins (ties: the shorter), forbidding EOS wins.
    """
    given = [c for c in constraints if c is not None]
    for c in given:
        if isinstance(c, Pending):
            return c
    binding = [c for c in given if isinstance(c, Constraint)]
    if not binding:
        return None
    if len(binding) == 1 and binding[0].eos == "auto":
        return binding[0]
    allowed: frozenset[int] | None = None
    bias: dict[int, float] = {}
    for c in binding:
        if c.allowed is not None:
            own = c.allowed | eos if c.eos == "allow" else c.allowed
            allowed = own if allowed is None else allowed & own
        for token, nats in c.bias.items():
            bias[token] = bias.get(token, 0.0) + nats
    forced = min((c for c in binding if c.forced), key=lambda c: (-c.priority, len(c.forced)), default=None)
    hint = next((c.hint for c in binding if c.hint), ())
    forbid = any(c.eos == "forbid" for c in binding)
    if forbid and allowed is not None:
        allowed = allowed - eos
    if forbid and allowed is None:
        bias |= {token: float("-inf") for token in eos}
    strict = any(c.on_empty == "error" for c in binding)
    return Constraint(allowed, bias, forced.forced if forced else (), hint, on_empty="error" if strict else "eos")
