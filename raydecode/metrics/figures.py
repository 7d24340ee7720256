"""The output's rows, part by part, to the figures of the report. One pass; nothing grows with the corpus.

Legend of the result (`figures` in report.json): counts are rows or tokens, names ending in `_s` are seconds.
`rows` counts input rows, `samples` output rows (n per input row).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raydecode.metrics.forecast import compare
from raydecode.metrics.histogram import Histogram
from raydecode.metrics.timeline import Timeline

COLUMNS = (
    "id", "sample", "text", "finish_reason", "prompt_tokens", "output_tokens", "queued_s", "first_token_s", "total_s",
    "worker", "finished_at", "drafted", "accepted", "forwards", "draft_failures", "replay_mismatches", "error",
    "drafter", "draft_s", "drafting", "stopped_by",
)  # fmt: skip
"""Columns of the output that are read; any but the first four may be missing."""

NUMBERS = ("sample", "prompt_tokens", "output_tokens", "queued_s", "first_token_s", "total_s", "finished_at",
           "drafted", "accepted", "forwards", "draft_failures", "replay_mismatches", "draft_s")  # fmt: skip
COUNTS = ("drafted", "accepted", "forwards", "draft_failures", "replay_mismatches")
BY_DRAFTER = ("output_tokens", "forwards", "drafted", "accepted", "draft_failures", "draft_s")
HISTOGRAMS = ("prompt_tokens", "output_tokens", "queued_s", "first_token_s", "total_s")
FIRST_ROWS, ERROR_ROWS, CELL_CHARS, ERROR_KINDS, CAUSES = 200, 1000, 2000, 50, 50


def measure(tables: Iterable[pa.Table], facts: Mapping[str, Any]) -> dict[str, Any]:
    """All figures as JSON values.

    facts: job, engine, notes, versions, attempts, rows_rerun, deaths, spans [[start, end], ...] (Unix seconds, one per
           attempt), workers [{worker, started_at, ready_at, ended_at}], plan; each may be missing
    """
    fold = _Fold(facts.get("spans") or ())
    for table in tables:
        fold.add(table)
    return fold.result(facts)


class _Fold:
    def __init__(self, spans: Sequence[Sequence[float]]) -> None:
        self.starts = np.array([span[0] for span in spans])
        self.active: dict[int, list[float]] = {}  # attempt -> first start, last end of its rows
        self.rows = self.samples = self.errors = self.tokens = self.prompt_tokens = 0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.drafters: dict[str, dict[str, float]] = {}
        self.drafting: dict[str, _Drafter] = {}
        self.reasons: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self.token_rate, self.row_rate = Timeline(), Timeline()
        self.workers: dict[str, _Worker] = {}
        self.kinds: dict[tuple[str, str], dict[str, Any]] = {}
        self.first: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.began = math.inf

    def add(self, table: pa.Table) -> None:
        number = {name: _numbers(table, name) for name in NUMBERS}
        failed = _valid(table, "error")
        first = np.nan_to_num(number["sample"]) == 0
        self.samples += table.num_rows
        self.rows += int(first.sum())
        if "finish_reason" in table.column_names:
            for one in table["finish_reason"].value_counts().to_pylist():
                self.reasons[str(one["values"])] += one["counts"]
        if "stopped_by" in table.column_names:
            for one in table["stopped_by"].drop_null().value_counts().to_pylist():
                cause = _cell(one["values"])  # a monitor says what it likes: their number must not grow with the corpus
                self.causes[cause if cause in self.causes or len(self.causes) < CAUSES else "other"] += one["counts"]
        for name, histogram in self.histograms.items():
            histogram.add(number[name][~failed & ~np.isnan(number[name])])
        self.tokens += int(np.nansum(number["output_tokens"]))
        self.prompt_tokens += int(np.nansum(number["prompt_tokens"][first]))
        for name in COUNTS:
            self.counts[name] += int(np.nansum(number[name]))
        self._drafts(table, number)
        self._drafting(table)
        self._times(table, number)
        self._errors(table, failed)
        self._browse(table, failed)

    def _drafts(self, table: pa.Table, number: Mapping[str, np.ndarray]) -> None:
        if "drafter" not in table.column_names or pa.types.is_null(table["drafter"].type):
            return
        names = table["drafter"].combine_chunks().dictionary_encode()
        for index, chosen in _groups(names.indices.fill_null(-1).to_numpy(zero_copy_only=False)):
            name = "none" if index < 0 else str(names.dictionary[index].as_py())
            mine = self.drafters.setdefault(name, {"samples": 0, **dict.fromkeys(BY_DRAFTER, 0)})
            mine["samples"] += len(chosen)
            for column in BY_DRAFTER:
                mine[column] += float(np.nansum(number[column][chosen]))

    def _drafting(self, table: pa.Table) -> None:
        if "drafting" not in table.column_names or pa.types.is_null(table["drafting"].type):
            return
        for cell in table["drafting"].to_pylist():
            for name, one in (json.loads(cell) if cell else {}).items():
                self.drafting.setdefault(name, _Drafter()).add(one)

    def _times(self, table: pa.Table, number: Mapping[str, np.ndarray]) -> None:
        at, tokens = number["finished_at"], np.nan_to_num(number["output_tokens"])
        known = ~np.isnan(at)
        began = at - np.nan_to_num(number["total_s"])
        flowing = began + np.nan_to_num(number["first_token_s"])
        self.token_rate.spread(np.minimum(flowing, at)[known], at[known], tokens[known])
        self.row_rate.add(at[known], np.ones(int(known.sum())))
        attempt = np.searchsorted(self.starts, at, side="right")
        for number_, chosen in _groups(np.where(known, attempt, -1)):
            if number_ >= 0:
                _widen(self.active.setdefault(number_, [math.inf, -math.inf]), began[chosen], at[chosen])
                self.began = min(self.began, float(began[chosen].min()))
        if "worker" not in table.column_names:
            return
        names = table["worker"].combine_chunks().dictionary_encode()
        for index, chosen in _groups(names.indices.fill_null(-1).to_numpy(zero_copy_only=False)):
            if index < 0:
                continue
            mine = self.workers.setdefault(names.dictionary[index].as_py(), _Worker())
            mine.rows += len(chosen)
            mine.tokens += int(tokens[chosen].sum())
            timed = chosen[known[chosen]]
            if len(timed):
                _widen(mine.active, began[timed], at[timed])

    def _errors(self, table: pa.Table, failed: np.ndarray) -> None:
        if not failed.any():
            return
        rows = table.select([name for name in ("id", "error") if name in table.column_names]).filter(pa.array(failed))
        for row in rows.to_pylist():
            error = row["error"]
            self.errors += 1
            key = (str(error.get("stage")), str(error.get("type")))
            if key not in self.kinds and len(self.kinds) >= ERROR_KINDS:
                key = ("other", "other")
            kind = self.kinds.setdefault(key, {"stage": key[0], "type": key[1], "count": 0, "samples": []})
            kind["count"] += 1
            if len(kind["samples"]) < 3:
                kind["samples"].append({"id": row.get("id"), "message": _cell(error.get("message"))})

    def _browse(self, table: pa.Table, failed: np.ndarray) -> None:
        room = max(FIRST_ROWS - len(self.first), 0)
        self.first += [_shown(row) for row in table.slice(0, room).to_pylist()]
        rest = np.flatnonzero(failed)
        rest = rest[rest >= room][: ERROR_ROWS - len(self.failed)]
        known = table.select([name for name in COLUMNS if name in table.column_names])
        self.failed += [_shown(row) for row in known.take(pa.array(rest, pa.int64())).to_pylist()]

    def result(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        seconds = sum(end - start for start, end in facts.get("spans", ()))
        generating = self._generating(facts)
        cost = _cost(facts, seconds)
        figures: dict[str, Any] = {
            "rows": self.rows,
            "samples": self.samples,
            "errors": self.errors,
            "error_rate": self.errors / self.samples if self.samples else 0.0,
            "output_tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": seconds or None,
            "generating_s": generating,
            "throughput": {
                "tokens_per_s": _rate(self.tokens, generating or seconds),
                "rows_per_s": _rate(self.rows, generating or seconds),
                "tokens_per_s_with_start": _rate(self.tokens, seconds),
                "over_time": self._over_time(),
                "workers": [one.to_json(name) for name, one in sorted(self.workers.items())],
            },
            "finish_reasons": dict(self.reasons.most_common()),
            "stopped_by": dict(self.causes.most_common()),
            "distributions": {name: histogram.to_json() for name, histogram in self.histograms.items()},
            "error_kinds": sorted(self.kinds.values(), key=lambda kind: -kind["count"]),
            **self._drafted(),
            "draft_failures": self.counts["draft_failures"],
            "replay_mismatches": self.counts["replay_mismatches"],
            "rows_rerun": facts.get("rows_rerun", 0),
            "attempts": facts.get("attempts", 1),
            "deaths": facts.get("deaths", 0),
            "cost": cost,
            "first_rows": self.first,
            "error_rows": self.failed,
            "error_rows_left_out": max(0, self.errors - len(self.failed) - sum("error" in row for row in self.first)),
        }
        real = {
            "seconds": seconds or None,
            "output_tokens": self.tokens,
            "cost": cost["amount"] if cost else None,
            "failing_rows": self.errors,
            "tokens_per_s": figures["throughput"]["tokens_per_s"],
            "memory_bytes": facts.get("memory_bytes"),
        }
        figures["plan"] = compare(facts["plan"], real) if facts.get("plan") else []
        return figures

    def _drafted(self) -> dict[str, Any]:
        """By drafter: those that served (column `drafting`), else those that rows named (column `drafter`)."""
        counts: Mapping[str, float] = self.counts
        tokens: float = self.tokens
        drafters: Mapping[str, Mapping[str, Any]] = self.drafters
        if self.drafting:
            drafters = {name: one.to_json() for name, one in self.drafting.items()}
            if not counts["forwards"]:
                names = ("forwards", "output_tokens", "drafted", "accepted")
                counts = {name: sum(one[name] for one in drafters.values()) for name in names}
                tokens = counts["output_tokens"]
        return {
            "tokens_per_forward": _rate(tokens, counts["forwards"]),
            "draft_acceptance": _rate(counts["accepted"], counts["drafted"]),
            "drafters": [
                {
                    "drafter": name,
                    **one,
                    "tokens_per_forward": _rate(one["output_tokens"], one["forwards"]),
                    "acceptance": _rate(one["accepted"], one["drafted"]),
                }
                for name, one in sorted(drafters.items())
            ],
        }

    def _generating(self, facts: Mapping[str, Any]) -> float | None:
        """Seconds from the first start to the last end of a row, over all attempts; else while workers were ready."""
        seconds = sum(end - start for start, end in self.active.values())
        if seconds > 0 or facts.get("attempts", 1) != 1:
            return seconds or None
        workers = [w for w in facts.get("workers") or () if w.get("ready_at") and w.get("ended_at")]
        return max(w["ended_at"] for w in workers) - min(w["ready_at"] for w in workers) if workers else None

    def _over_time(self) -> dict[str, Any]:
        """[seconds since the first row's start, tokens/s, rows/s]; a row's tokens lie from its first to its last."""
        width = max(self.token_rate.width_s, self.row_rate.width_s)
        tokens = self.token_rate.rates(width)
        rows = dict(self.row_rate.rates(width))
        begin = self.began if self.began < math.inf else 0.0
        return {
            "width_s": self.token_rate.width_s,
            "points": [[max(at - begin, 0.0), rate, rows.get(at, 0.0)] for at, rate in tokens],
        }


@dataclass(slots=True)
class _Drafter:
    """One drafter over all rows: the cells of `drafting` (`events.Drafting`), summed."""

    samples: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    offered: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def add(self, one: Mapping[str, Any]) -> None:
        self.samples += 1
        for name, value in one.items():
            if isinstance(value, int | float):
                self.counts[name] += value  # type: ignore[assignment]
        for mine, theirs in ((self.offered, one.get("offered", ())), (self.kept, one.get("kept", ()))):
            mine.extend([0] * (len(theirs) - len(mine)))
            for depth, n in enumerate(theirs):
                mine[depth] += n

    def to_json(self) -> dict[str, Any]:
        """acceptance_by_depth: of the forwards that offered tokens at a depth, what part kept one; how many offered"""
        pairs = zip(self.kept, self.offered, strict=True)
        names = ("forwards", "drafted", "accepted", "draft_s", "verify_s")
        return {
            "samples": self.samples,
            "output_tokens": self.counts["tokens"],
            **{name: self.counts[name] for name in names},
            "draft_failures": self.counts["failures"],
            "acceptance_by_depth": [[kept / offered, offered] for kept, offered in pairs if offered],
        }


@dataclass(slots=True)
class _Worker:
    rows: int = 0
    tokens: int = 0
    active: list[float] = field(default_factory=lambda: [math.inf, -math.inf])

    def to_json(self, name: str) -> dict[str, Any]:
        seconds = self.active[1] - self.active[0] if self.active[1] > self.active[0] else None
        rate = _rate(self.tokens, seconds)
        return {"worker": name, "rows": self.rows, "tokens": self.tokens, "seconds": seconds, "tokens_per_s": rate}


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as floats, NaN where it is null or not there."""
    if name not in table.column_names or pa.types.is_null(table[name].type):
        return np.full(table.num_rows, np.nan)
    return table[name].cast(pa.float64()).to_numpy().astype(np.float64, copy=False)


def _valid(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    return table[name].is_valid().to_numpy()


def _groups(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(key, indices with it)"""
    for key in np.unique(keys).tolist():
        yield key, np.flatnonzero(keys == key)


def _widen(span: list[float], began: np.ndarray, ended: np.ndarray) -> None:
    span[:] = min(span[0], float(began.min())), max(span[1], float(ended.max()))


def _rate(amount: float, seconds: float | None) -> float | None:
    return amount / seconds if seconds else None


def _cost(facts: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
    """price * actor-hours; of workers whose times are known, else of the whole pool for the whole time."""
    price = (facts.get("job") or {}).get("price")
    if not price:
        return None
    workers = [w for w in facts.get("workers", ()) if w.get("started_at") and w.get("ended_at")]
    busy = sum(w["ended_at"] - w["started_at"] for w in workers) if workers else None
    actors = ((facts.get("job") or {}).get("actors") or {}).get("max", 1)
    hours = (seconds * actors if busy is None else busy) / 3600
    return {
        "amount": hours * price["per_hour"],
        "currency": price["currency"],
        "actor_hours": hours,
        "per_hour": price["per_hour"],
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for the report's browser: internal columns and nulls left out, long cells cut."""
    return {name: _cell(value) for name, value in row.items() if value is not None and not name.startswith("_")}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else str(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, list) and len(value) > 64:
        return [_cell(one) for one in value[:64]] + [f"... {len(value) - 64} more"]
    if isinstance(value, list | tuple):
        return [_cell(one) for one in value]
    if isinstance(value, dict):
        return {str(k): _cell(v) for k, v in value.items() if v is not None}
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= CELL_CHARS else text[:CELL_CHARS] + f"... ({len(text)} characters)"
