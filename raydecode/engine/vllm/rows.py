"""One sample in flight on vLLM: the fold of its tokens into text, log-probabilities and a reason to end.

vLLM gets token ids only and finds neither EOS nor stop strings by text; the rules here are those of the walk
(`raydecode/engine/walk.py`): an end token first (its bytes are not text), then stop strings, then the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydecode.engine.ending import first_stop, named, settled
from raydecode.engine.vllm.params import Mapped
from raydecode.events import Drafting, Fault, FinishReason, OutcomeEvent, RowStats, TextEvent, TokenEvent
from raydecode.request import DecodingSpec, RowId

TopLogp = tuple[tuple[int, float], ...]


def facts(entry: Mapping[int, Any], token: int, k: int) -> tuple[float, TopLogp]:
    """(log-probability of `token`, the k likeliest) of one position: vLLM's {id: Logprob(logprob, rank)}, raw model."""
    ranked = sorted((of.rank, id, of.logprob) for id, of in entry.items() if of.rank is not None)
    return entry[token].logprob, tuple((id, logp) for _, id, logp in ranked[:k])


@dataclass(slots=True, eq=False)
class Row:
    """prompt: after the overflow policy. limit: most output tokens. key: of the row's noise.

    resumed: first ids of the output, delivered by an earlier engine; vLLM gets them as part of the prompt
    drafter: who drafts for it; the counts behind it are known when the row ends, but for `accepted`
    """

    id: RowId
    spec: DecodingSpec
    mapped: Mapped
    prompt: tuple[int, ...]
    limit: int
    key: int
    resumed: tuple[int, ...] = ()
    drafter: str | None = None
    output: list[int] = field(default_factory=list)
    text: bytes = b""
    shown: int = 0
    logprobs: list[tuple[float, TopLogp]] = field(default_factory=list)
    reason: FinishReason | None = None
    cause: str = ""
    fault: Fault | None = None
    reports: tuple[Any, ...] = ()
    submitted_at: float = 0.0
    admitted_at: float = 0.0
    first_token_at: float = 0.0
    cached: int = 0
    forwards: int = 0
    accepted: int = 0
    drafted: int = 0
    draft_steps: int = 0
    draft_failures: int = 0
    drafter_bytes: int = 0
    draft_s: float = 0.0

    def take(
        self, token: int, token_bytes: Sequence[bytes], eos: frozenset[int], logp: float | None, top: TopLogp
    ) -> TokenEvent:
        """Make `token` part of the row and see whether it ends it."""
        event = TokenEvent(self.id, len(self.output), token, token_bytes[token], logp=logp, top=top)
        self.output.append(token)
        if logp is not None:
            self.logprobs.append((logp, top))
        spec = self.spec
        if token in spec.stop_tokens or (token in eos and not spec.ignore_eos):
            self.reason = "eos"
            if token in spec.stop_tokens:
                self.reason, self.cause = "stop", f"token {token}"
            return event
        self.text += event.bytes
        cut = first_stop(self.text, len(event.bytes), spec.stop) if spec.stop else -1
        if cut >= 0:
            self.reason, self.cause, self.text = "stop", named(self.text, cut, spec.stop), self.text[:cut]
        elif len(self.output) >= self.limit:
            self.reason = "length"
        return event

    def fail(self, stage: str, kind: str, message: str) -> None:
        """End this row, and only this one, with an error record."""
        self.reason, self.fault = "error", Fault(stage, kind, message)

    def news(self) -> TextEvent | None:
        """The bytes that became certain since the last call."""
        end = len(self.text) if self.reason else settled(self.text, self.spec.stop)
        if end <= self.shown:
            return None
        event = TextEvent(self.id, self.text[self.shown : end])
        self.shown = end
        return event

    def _drafting(self) -> dict[str, Drafting]:
        """What its drafter did, and the steps without a draft; acceptance by depth and verify_s are not known here.

        A worker may be a step ahead of what came out.
        """
        if self.drafter is None:
            return {}
        steps = min(self.draft_steps, self.forwards)
        drafts = Drafting(
            steps, steps + self.accepted, self.drafted, self.accepted, self.draft_s, failures=self.draft_failures
        )
        plain = self.forwards - steps
        return {self.drafter: drafts, **({"none": Drafting(plain, plain)} if plain else {})}

    def outcome(self, now: float) -> OutcomeEvent:
        assert self.reason is not None
        stats = RowStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            forwards=self.forwards,
            drafted=self.drafted,
            accepted=self.accepted,
            draft_failures=self.draft_failures,
            drafter=self.drafter,
            drafter_bytes=self.drafter_bytes,
            draft_s=self.draft_s,
            drafting=self._drafting(),
            queued_s=(self.admitted_at or now) - self.submitted_at,
            first_token_s=max(self.first_token_at - self.submitted_at, 0.0),
            total_s=now - self.submitted_at,
        )
        return OutcomeEvent(
            self.id, self.reason, tuple(self.output), self.text, self.fault, tuple(self.logprobs), self.reports,
            self.cause, stats,
        )  # fmt: skip
