"""The events of one sample as pieces of an answer. Pure.

Text comes from TextEvents, which hold whole characters and nothing that a stop string can take back. A token's
log-probability goes out with the piece that shows the token's first byte; tokens behind the end of the text (a stop
string, EOS) are left out, as they are from the text. So the pieces of a stream put together are the whole answer.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydecode.events import Event, OutcomeEvent, RowStats, StepEvent, TextEvent, TokenEvent

LEAST = -9999.0
"""Stands for minus infinity, which JSON has not (OpenAI's own value)."""

Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probability (nats; None: the first of a prompt) and its alternatives.

    at: the character of the text where it begins
    """

    token: int
    bytes: bytes
    logp: float | None
    top: Top
    at: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What a list of events adds to one sample."""

    text: str = ""
    scored: tuple[Scored, ...] = ()
    trace: Mapping[str, Any] | None = None
    outcome: OutcomeEvent | None = None


class Sample:
    """A fold over the events of one sample.

    scored: log-probabilities are wanted; trace: tokens and steps as well
    """

    def __init__(self, *, scored: bool, trace: bool, offset: int = 0) -> None:
        self._scored, self._trace = scored, trace
        self.outcome: OutcomeEvent | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = self._read = 0  # bytes of text shown, bytes of tokens read
        self._waiting: deque[tuple[TokenEvent, int]] = deque()
        self._characters = offset

    def take(self, events: Iterable[Event]) -> Piece:
        """The events of one step."""
        text = b""
        tokens: list[TokenEvent] = []
        steps: list[StepEvent] = []
        for event in events:
            match event:
                case TextEvent():
                    text += event.bytes
                case TokenEvent():
                    if self._scored:
                        self._waiting.append((event, self._read))
                        self._read += len(event.bytes)
                    tokens.append(event)
                case StepEvent():
                    steps.append(event)
                case OutcomeEvent():
                    self.outcome = event
        self._shown += len(text)
        trace = _trace(tokens, steps) if self._trace and (tokens or steps) else None
        return Piece(self._decoder.decode(text, self.outcome is not None), self._out(), trace, self.outcome)

    def _out(self) -> tuple[Scored, ...]:
        """The tokens whose first byte is shown now."""
        out: list[Scored] = []
        while self._waiting and self._waiting[0][1] < self._shown:
            event, _start = self._waiting.popleft()
            out.append(Scored(event.token, event.bytes, finite(event.logp), event.top, self._characters))
            self._characters += _characters(event.bytes)
        return tuple(out)


def _characters(text: bytes) -> int:
    """Characters that begin in these bytes: all but continuation bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in text)


def whole(outcome: OutcomeEvent, table: Sequence[bytes], offset: int = 0) -> tuple[Scored, ...]:
    """The scored tokens of a finished text: those that begin in it."""
    out: list[Scored] = []
    start, size = 0, len(outcome.text)
    for token, (logp, top) in zip(outcome.tokens, outcome.logprobs, strict=False):
        if start >= size:
            break
        out.append(Scored(token, table[token], finite(logp), top, offset + _characters(outcome.text[:start])))
        start += len(table[token])
    return tuple(out)


def likeliest(outcomes: Sequence[OutcomeEvent], n: int) -> list[OutcomeEvent]:
    """`best_of`: the n texts of highest mean log-probability per token, the best first; equals in order of sample."""

    def mean(one: OutcomeEvent) -> float:
        return sum(logp for logp, _top in one.logprobs) / max(len(one.logprobs), 1)

    return sorted(outcomes, key=lambda one: (-mean(one), one.row.sample))[:n]


# ---------------------------------------------------------------------- how things look in JSON
def spelled(token: int, text: bytes) -> str:
    """A token as text: its characters; `bytes:\\xf0\\x9f` for a part of one; `token:4` for one without bytes."""
    if not text:
        return f"token:{token}"
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def finite(logp: float | None) -> float:
    return LEAST if logp is None or logp < LEAST else logp


def _trace(tokens: Sequence[TokenEvent], steps: Sequence[StepEvent]) -> dict[str, Any]:
    """Tokens and steps, for who draws them."""
    drafted = {step.t0 + i for step in steps if step.drafter for i in range(len(step.path) - 1)}
    return {
        "tokens": [
            {
                "t": one.t, "id": one.token, "text": spelled(one.token, one.bytes), "bytes": list(one.bytes),
                "logp": None if one.logp is None else finite(one.logp), "kept": one.kept, "source": one.source,
                "entropy": one.entropy, "top": one.top, "drafted": one.t in drafted,
            }
            for one in tokens
        ],
        "steps": [
            {
                "t0": one.t0, "tokens": list(one.tree.token), "parents": list(one.tree.parent), "path": list(one.path),
                "emitted": list(one.emitted), "drafter": one.drafter,
            }
            for one in steps
        ],
    }  # fmt: skip


def named(trace: Mapping[str, Any], table: Sequence[bytes]) -> dict[str, Any]:
    """A trace whose alternatives and tree tokens have their texts."""

    def of(id: int) -> dict[str, Any]:
        return {"id": id, "text": spelled(id, table[id]), "bytes": list(table[id])}

    tokens = [{**one, "top": [{**of(id), "logp": finite(logp)} for id, logp in one["top"]]} for one in trace["tokens"]]
    steps = [{**one, "texts": [spelled(id, table[id]) for id in one["tokens"]]} for one in trace["steps"]]
    return {"tokens": tokens, "steps": steps}


def account(outcome: OutcomeEvent, index: int) -> dict[str, Any]:
    """What the engine knows of a finished sample: our words for its end, counts, drafters, reports."""
    stats = {f.name: getattr(outcome.stats, f.name) for f in dataclasses.fields(RowStats) if f.name != "drafting"}
    return {
        "index": index,
        "reason": outcome.reason,
        "stopped_by": outcome.cause or None,
        "tokens": len(outcome.tokens),
        "stats": stats,
        "drafting": {name: dataclasses.asdict(one) for name, one in outcome.stats.drafting.items()},
        "reports": [_plain(report) for report in outcome.reports],
    }


def _plain(report: Any) -> Any:
    """Reports are JSON-able by contract; what is not is said as text."""
    if dataclasses.is_dataclass(report) and not isinstance(report, type):
        return dataclasses.asdict(report)
    return report.to_json() if hasattr(report, "to_json") else report


FINISH: Mapping[str, str] = {"eos": "stop", "stop": "stop", "length": "length", "monitor": "stop"}
"""Our words for a text's end -> OpenAI's. A monitor that ends a text is in `raydecode.samples[].stopped_by`."""
