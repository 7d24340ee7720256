"""What comes out of an engine. Readers `match` on the type.

Fold events (TokenEvent, OutcomeEvent) are a function of the text: equal with every drafter, batch and restart.
Methods see only these. Run events (StepEvent, TextEvent) depend on drafter and clock; they are for reports,
`explain` and the playground.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raydecode.request import RowId

FinishReason = Literal["eos", "stop", "length", "monitor", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One per output position, in order.

    t:       output index, from 0
    bytes:   the token's bytes (empty for special tokens); they need not be valid UTF-8 alone
    logp:    nats, raw model, before constraint and chain; None unless somebody needs it
    kept:    -ln of the probability that the constraint left standing, nats; 0 when free
    source:  "forced" by a constraint, else "sampled"; whether a draft proposed it is a run event
    entropy, top, hidden: only if needed. top: ((id, logp), ...) of the raw model, likeliest first
    """

    row: RowId
    t: int
    token: int
    bytes: bytes
    logp: float | None = None
    kept: float = 0.0
    source: Literal["sampled", "forced"] = "sampled"
    entropy: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    hidden: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row failed: where (`stage`), which exception (`kind`), what it said."""

    stage: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Drafting:
    """What one drafter did for a row ("none": the forwards without a draft, "known": tokens forced or replayed).

    offered[d]: forwards whose text reached a node at depth d that had drafted children; kept[d]: and went on in one
    draft_s:    the row's share of the time in the drafter, used or not, top-k for it included
    verify_s:   the drafted tokens' share of the forwards' seconds, by their part of the tokens of the call
    failures:   times that it raised or returned what is no valid tree
    """

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    failures: int = 0
    offered: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowStats:
    """Counts and seconds of one row; they depend on drafter, neighbours and clock.

    cached_tokens: prompt tokens that were in the cache; preempted: times the row gave its memory to an earlier one
    drafter: the card's name; drafting: name -> what it did, those that `auto` chose or only asked, and "none"
    drafter_bytes: memory of the row's drafters at its end, shared tables included; draft_s, verify_s: see `Drafting`,
    summed, with the time that choosing took
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_failures: int = 0
    drafter: str | None = None
    drafter_bytes: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    drafting: Mapping[str, Drafting] = field(default_factory=dict)
    replay_mismatches: int = 0
    preempted: int = 0
    queued_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    """The last event of a row. `text` is cut at the stop string; `logprobs` mirrors the token events' logp and top.

    cause: what ended it, where `reason` leaves that open: the stop string, "token 17", or "<monitor>: <what it said>"
    """

    row: RowId
    reason: FinishReason
    tokens: tuple[int, ...]
    text: bytes
    error: Fault | None = None
    logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    reports: tuple[Any, ...] = ()
    cause: str = ""
    stats: RowStats = field(default_factory=RowStats, compare=False)


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Run event: what one step verified for one row. path: accepted nodes of `tree`, the root first."""

    row: RowId
    t0: int
    tree: Any
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    drafter: str | None


@dataclass(frozen=True, slots=True)
class TextEvent:
    """Run event: bytes that no stop string and no half-written character can take back."""

    row: RowId
    bytes: bytes


Event = TokenEvent | OutcomeEvent | StepEvent | TextEvent
