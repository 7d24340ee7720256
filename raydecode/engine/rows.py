"""A running row, and the columns that samplers see of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raydecode.contracts import Needs, Slope
from raydecode.engine.tally import Tally, frozen
from raydecode.errors import RowError
from raydecode.events import Fault, FinishReason, RowStats
from raydecode.numerics import normaliser
from raydecode.request import Card, DecodingSpec, Request, RowId

if TYPE_CHECKING:
    from raydecode.engine.chain import Observation
    from raydecode.engine.choose import Seat
    from raydecode.engine.inside import Look


@dataclass(slots=True)
class Held:
    """A drafter that serves a row, and its state there."""

    card: Card
    state: Any


@dataclass(slots=True, eq=False)
class Row:
    """One sample in flight. Between steps context[cached:] is not in the cache and ends with the pending token.

    context:  prompt and output ids
    source:   what an encoder reads first; the prompt is then the decoder's start alone
    limit:    most output tokens after the overflow policy
    sampler_state, monitor_state: one entry per card; the states of the text so far
    drafters: those that were asked, by their cards' repr
    chosen:   repr of a drafter card that chooses, else empty; seat: what is then known of the row
    pick:     whose tree the coming call verifies
    needs:    what its monitors and `logprobs` want in token events
    inside:   what all its methods want of the model's inside
    horizon:  most tokens verified per forward, as its interventions say; None = any number
    tail:     site -> [D] of the node that chose the pending token, for drafters that want it
    leader:   the sample whose prefill this row waits to fork
    known:    leading pages of the context that other rows may share
    history:  int64 buffer of `context`, kept from the first time a sampler reads it
    rehearsed: a copy that tries out what the row would choose; nothing that happens to it counts
    """

    id: RowId
    request: Request
    spec: DecodingSpec
    key: int
    context: list[int]
    prompt_len: int
    limit: int
    source: tuple[int, ...] = ()
    sampler_state: list[dict[str, float]] = field(default_factory=list)
    monitor_state: list[Any] = field(default_factory=list)
    drafters: dict[str, Held] = field(default_factory=dict)
    chosen: str = ""
    seat: Seat | None = None
    pick: Card | None = None
    slot: int = -1
    cached: int = 0
    known: int = 0
    needs: Needs = field(default_factory=Needs)
    inside: Needs = field(default_factory=Needs)
    horizon: int | None = None
    tail: dict[str, Tensor] = field(default_factory=dict)
    leader: Row | None = None
    replay: tuple[int, ...] = ()
    history: Tensor | None = None
    rehearsed: bool = False
    text: bytes = b""
    shown: int = 0
    logprobs: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    reason: FinishReason | None = None
    cause: str = ""
    fault: Fault | None = None
    parked: bool = False
    submitted_at: float = 0.0
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_failures: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    drafting: dict[str, Tally] = field(default_factory=dict)
    replay_mismatches: int = 0
    cached_at_start: int = 0
    preempted: int = 0

    @property
    def t(self) -> int:
        """Output index of the next token."""
        return len(self.context) - self.prompt_len

    @property
    def unread(self) -> int:
        """Tokens before the pending one that are not in the cache."""
        return len(self.context) - 1 - self.cached

    @property
    def salt(self) -> str:
        """What the cache depends on besides the ids: the interventions, which do not depend on whose row it is."""
        return repr(self.spec.interventions) if self.spec.interventions else ""

    @property
    def pending(self) -> int:
        return self.context[-1]

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(self.context[self.prompt_len :])

    def append(self, token: int) -> None:
        if self.history is not None:
            if len(self.context) == self.history.numel():
                self.history = torch.cat([self.history, torch.empty_like(self.history)])
            self.history[len(self.context)] = token
        self.context.append(token)

    def keep_history(self) -> None:
        """Start the buffer; `append` goes on with it."""
        if self.history is None:
            self.history = torch.empty(2 * len(self.context) + 16, dtype=torch.int64)
            self.history[: len(self.context)] = torch.tensor(self.context)

    def tally(self, name: str) -> Tally:
        """The counts of a drafter."""
        if name not in self.drafting:
            self.drafting[name] = Tally()
        return self.drafting[name]

    def no_draft(self, name: str) -> None:
        """A drafter failed for this row: counted, and nothing else."""
        self.draft_failures += 1
        self.tally(name).failures += 1

    def fail(self, stage: str, error: Exception) -> None:
        """End this row, and only this one, with an error record."""
        self.reason = "error"
        kind, message = getattr(error, "kind", type(error).__name__), getattr(error, "message", str(error))
        self.fault = Fault(getattr(error, "stage", stage), kind, message)

    def stats(self, now: float, drafter_bytes: int) -> RowStats:
        """Counts and seconds so far."""
        return RowStats(
            prompt_tokens=len(self.source) or self.prompt_len,
            cached_tokens=self.cached_at_start,
            forwards=self.forwards,
            drafted=self.drafted,
            accepted=self.accepted,
            draft_failures=self.draft_failures,
            drafter=self.spec.drafter.name if self.spec.drafter else None,
            drafter_bytes=drafter_bytes,
            draft_s=self.draft_s,
            verify_s=self.verify_s,
            drafting=frozen(self.drafting),
            replay_mismatches=self.replay_mismatches,
            preempted=self.preempted,
            queued_s=(self.admitted_at or now) - self.submitted_at,
            first_token_s=max(self.first_token_at - self.submitted_at, 0.0),
            total_s=now - self.submitted_at,
        )


class StageRows:
    """`contracts.SamplerRows` over stage `cards[i]`, `states[i]` of row i. device: where options and states go."""

    def __init__(
        self,
        rows: Sequence[Row],
        cards: Sequence[Card],
        states: Sequence[dict[str, float]],
        look: Look | None = None,
        needs: Needs | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._rows, self._cards, self._states, self._look, self._needs = rows, cards, states, look, needs
        self._device = device
        self._seen: Observation | None = None

    @property
    def t_R(self) -> list[int]:
        return [row.t for row in self._rows]

    @property
    def keys_R(self) -> list[int]:
        return [row.key for row in self._rows]

    @property
    def rehearsed(self) -> bool:
        """These are copies of rows in a draft (`engine.rehearsal`): laws that write down states pass them by."""
        return any(row.rehearsed for row in self._rows)

    @property
    def prompt_len_R(self) -> list[int]:
        return [row.prompt_len for row in self._rows]

    @property
    def history_R(self) -> list[Tensor]:
        if self._needs is not None and not self._needs.history:
            name = self._cards[0].name
            raise RowError("sampler", "NotDeclared", f"{name} reads histories: it must say needs = Needs(history=True)")
        out = []
        for row in self._rows:
            row.keep_history()
            assert row.history is not None
            out.append(row.history[: len(row.context)])
        return out

    @property
    def sites(self) -> Sequence[str]:
        return self._inside.sites

    def hidden(self, site: str) -> Any:
        return self._inside.hidden(site)

    def early_logits(self, site: str, index: Sequence[int], norm: bool) -> Tensor:
        return self._inside.early_logits(site, index, norm)

    def slope(self, r: int, site: str, loss: Callable[[Tensor], Tensor], shift_D: Tensor | None = None) -> Slope:
        name = self._cards[0].name
        if self._needs is not None and not self._needs.grad:
            raise RowError("sampler", "NotDeclared", f"{name} takes gradients: it must say needs = Needs(grad=True)")
        slope = self._inside.slope
        if slope is None or site not in self.sites:
            raise RowError("sampler", "NoInside", f"{name}: no gradients at site '{site}' here")
        return slope(self._rows[r], site, loss, shift_D)

    @property
    def _inside(self) -> Look:
        if self._look is None:
            raise RowError("sampler", "NoInside", "hidden states exist inside an engine's walk only")
        return self._look

    def given(self, name: str) -> list[Any]:
        return [card.options[name] for card in self._cards]

    def option(self, name: str) -> Tensor:
        return torch.tensor([card.options[name] for card in self._cards], dtype=torch.float32, device=self._device)

    def keep_in(self, seen: Observation) -> None:
        """Where the normaliser of these very rows stays for who observes."""
        self._seen = seen

    def normaliser(self, x_RC: Tensor) -> Tensor:
        if self._seen is None or x_RC is not self._seen.x_GC:
            return normaliser(x_RC)
        return self._seen.normaliser()

    def state(self, name: str) -> Tensor:
        return torch.tensor([state[name] for state in self._states], dtype=torch.float64, device=self._device)
