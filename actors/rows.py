"""Between a block's row and an engine: a row becomes a request, its outcomes become output columns."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from actors.prepare import MESSAGES, TEXT
from raydecode.config import JobConfig, decoding_json, parse_decoding
from raydecode.corpus.intervals import Span
from raydecode.corpus.rows import RowFault, Sample, block_spans, row_spec
from raydecode.corpus.schema import EXTRA as UNTYPED
from raydecode.errors import UserError
from raydecode.events import Fault, OutcomeEvent
from raydecode.request import DecodingSpec, Messages, Prompt, Request, Text

DECODING = "decoding"
"""The input column whose cells override the job's decoding, row by row."""


def output_columns(job: JobConfig) -> tuple[str, ...]:
    """The columns to write: those asked for, and the alternatives beside log-probabilities when some were asked for."""
    columns = job.output.columns
    return (*columns, "top_logprobs") if "logprobs" in columns and job.spec.logprobs else columns


def key_of(span: Span) -> str:
    """The request id of a row: unique among all rows of the job."""
    return f"{span.input}:{span.start}"


class Requests:
    """block -> requests. Each row's spec is the job's with the row's own keys over it."""

    def __init__(self, job: JobConfig) -> None:
        self._job, self._base, self._roster = job, _bounded(job.spec, job), job.roster
        self._specs: dict[str, DecodingSpec] = {}  # rows often repeat a handful of specs; checking one costs 50 us

    def of(self, block: pa.Table) -> list[tuple[Span, Request | RowFault]]:
        """A request for every row of the block, or why there is none."""
        cells = _cells(block)
        columns = (block[name].to_pylist() for name in ("_id", TEXT, MESSAGES))
        rows = zip(block_spans(block), *columns, cells, strict=True)
        return [(span, self._one(span, *row)) for span, *row in rows]

    def _one(self, span: Span, id: str, text: str | None, messages: str | None, cell: object) -> Request | RowFault:
        try:
            prompt: Prompt = Text(text) if text is not None else Messages(tuple(json.loads(messages or "[]")))
            return Request(key_of(span), id, prompt, self._spec(cell), overflow=self._job.decoding.overflow)
        except UserError as error:
            return RowFault("decoding", "InvalidSpec", str(error))
        except Exception as error:  # a cell is a stranger's: whatever it makes raise is that row's fault
            return RowFault.of(error, "decoding")

    def _spec(self, cell: object) -> DecodingSpec:
        own = row_spec(cell)
        if own is None:
            return self._base
        key = json.dumps(own, sort_keys=True, default=str)
        if key not in self._specs:
            spec = _bounded(parse_decoding(own, self._base), self._job)
            self._roster.check(spec)
            if len(self._specs) > 10_000:  # every row its own: the memo is of no use
                self._specs.clear()
            self._specs[key] = spec
        return self._specs[key]


def _cells(block: pa.Table) -> list[object]:
    """The rows' own decoding. What did not fit the column's type, or came after its file's head, lies in `_extra`."""
    cells = block[DECODING].to_pylist() if DECODING in block.column_names else [None] * block.num_rows
    if UNTYPED in block.column_names:
        for i, extra in enumerate(block[UNTYPED].to_pylist()):
            if cells[i] is None and extra and DECODING in extra:
                cells[i] = json.loads(extra).get(DECODING)
    return cells


def samples_of(request: Request, outcomes: Sequence[OutcomeEvent], worker: str, columns: Sequence[str]) -> list[Sample]:
    """The samples of a finished row, with the columns asked for (and the number of tokens, which the log counts)."""
    names = dict.fromkeys([*columns, "output_tokens"])
    return [
        Sample({name: VALUES[name](request, one, worker) for name in names}, _fault(one.error), one.row.sample)
        for one in outcomes
    ]


VALUES: Mapping[str, Callable[[Request, OutcomeEvent, str], Any]] = {
    "text": lambda _, outcome, __: outcome.text.decode("utf-8", "replace"),
    "finish_reason": lambda _, outcome, __: outcome.reason,
    "stopped_by": lambda _, outcome, __: outcome.cause or None,
    "tokens": lambda _, outcome, __: list(outcome.tokens),
    "logprobs": lambda _, outcome, __: [logp for logp, _top in outcome.logprobs] if outcome.logprobs else None,
    "top_logprobs": lambda _, outcome, __: (
        [[{"token": token, "logprob": logp} for token, logp in top] for _logp, top in outcome.logprobs] or None
    ),
    "prompt": lambda request, *_: _prompt_text(request.prompt),
    "prompt_tokens": lambda _, outcome, __: outcome.stats.prompt_tokens,
    "output_tokens": lambda _, outcome, __: len(outcome.tokens),
    "cached_tokens": lambda _, outcome, __: outcome.stats.cached_tokens,
    "forwards": lambda _, outcome, __: outcome.stats.forwards,
    "tokens_per_forward": lambda _, outcome, __: (
        len(outcome.tokens) / outcome.stats.forwards if outcome.stats.forwards else None
    ),
    "drafter": lambda _, outcome, __: outcome.stats.drafter,
    "drafted": lambda _, outcome, __: outcome.stats.drafted,
    "accepted": lambda _, outcome, __: outcome.stats.accepted,
    "draft_failures": lambda _, outcome, __: outcome.stats.draft_failures,
    "draft_s": lambda _, outcome, __: outcome.stats.draft_s,
    "verify_s": lambda _, outcome, __: outcome.stats.verify_s,
    "drafting": lambda _, outcome, __: _drafting(outcome),
    "drafter_bytes": lambda _, outcome, __: outcome.stats.drafter_bytes,
    "replay_mismatches": lambda _, outcome, __: outcome.stats.replay_mismatches,
    "preempted": lambda _, outcome, __: outcome.stats.preempted,
    "queued_s": lambda _, outcome, __: outcome.stats.queued_s,
    "first_token_s": lambda _, outcome, __: outcome.stats.first_token_s,
    "total_s": lambda _, outcome, __: outcome.stats.total_s,
    "reports": lambda _, outcome, __: json.dumps(outcome.reports, default=_plain) if outcome.reports else None,
    "decoding": lambda request, *_: json.dumps(decoding_json(request.decoding)),
    "finished_at": lambda *_: time.time(),
    "worker": lambda _, __, worker: worker,
}
"""(request, outcome, worker) -> a cell of each column of `raydecode.columns`."""


def _drafting(outcome: OutcomeEvent) -> str | None:
    """What each drafter did, without what is 0."""
    found = outcome.stats.drafting
    if not found:
        return None
    plain = {name: dataclasses.asdict(one) for name, one in found.items()}
    short = {name: {k: _short(v) for k, v in one.items() if v} for name, one in plain.items()}
    return json.dumps(short)


def _short(value: Any) -> Any:
    """Seconds to the microsecond."""
    return round(value, 6) if isinstance(value, float) else value


def _fault(fault: Fault | None) -> RowFault | None:
    return RowFault(fault.stage, fault.kind, fault.message) if fault else None


def _bounded(spec: DecodingSpec, job: JobConfig) -> DecodingSpec:
    limits = [limit for limit in (spec.deadline_s, job.actors.row_timeout_s) if limit is not None]
    return dataclasses.replace(spec, deadline_s=min(limits)) if limits else spec


def _prompt_text(prompt: Prompt) -> str:
    match prompt:
        case Text(text):
            return text
        case Messages(messages):
            return json.dumps(messages, ensure_ascii=False)
    return json.dumps(prompt.ids)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.to_json() if hasattr(value, "to_json") else str(value)
