"""The output's rows, part by part, to the figures of the report. One pass; nothing grows with the corpus.

Legend of the result (`figures.json` in the report): counts are rows or tokens, names ending in `_s` are seconds.
`rows` counts input rows, `samples` output rows (n per input row).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raydecode.metrics.forecast import compare
from raydecode.metrics.histogram import Histogram
from raydecode.metrics.timeline import Timeline

COLUMNS = (
    "id", "sample", "text", "finish_reason", "prompt_tokens", "output_tokens", "queued_s", "first_token_s", "total_s",
    "worker", "finished_at", "drafted", "accepted", "forwards", "error",
)  # fmt: skip
"""Columns of the output that are read; any but the first four may be missing."""

HISTOGRAMS = ("prompt_tokens", "output_tokens", "queued_s", "first_token_s", "total_s")
FIRST_ROWS, ERROR_ROWS, CELL_CHARS, ERROR_KINDS = 200, 1000, 2000, 50


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
        self.starts = [span[0] for span in spans]
        self.active: dict[int, list[float]] = {}  # attempt -> first start, last end of its rows
        self.rows = self.samples = self.errors = self.tokens = self.prompt_tokens = self.drafted = self.accepted = (
            self.forwards
        ) = 0
        self.reasons: Counter[str] = Counter()
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self.token_rate, self.row_rate = Timeline(), Timeline()
        self.workers: dict[str, dict[str, float]] = {}
        self.kinds: dict[tuple[str, str], dict[str, Any]] = {}
        self.first: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.began = math.inf

    def add(self, table: pa.Table) -> None:
        columns = {name: table[name].to_pylist() for name in COLUMNS if name in table.column_names}
        empty = [None] * table.num_rows
        get = {name: columns.get(name, empty) for name in COLUMNS}
        first = [sample in (0, None) for sample in get["sample"]]
        self.samples += table.num_rows
        self.rows += sum(first)
        self.reasons.update(str(reason) for reason in get["finish_reason"])
        for name, histogram in self.histograms.items():
            histogram.add(
                x for x, error in zip(get[name], get["error"], strict=True) if x is not None and error is None
            )
        self.tokens += sum(x or 0 for x in get["output_tokens"])
        self.prompt_tokens += sum(x or 0 for x, one in zip(get["prompt_tokens"], first, strict=True) if one)
        for name in ("drafted", "accepted", "forwards"):
            setattr(self, name, getattr(self, name) + sum(x or 0 for x in get[name]))
        self._times(get)
        self._errors(get)
        self._browse(table, get)

    def _times(self, get: Mapping[str, list[Any]]) -> None:
        names = ("worker", "finished_at", "total_s", "output_tokens")
        for worker, at, took, tokens in zip(*(get[name] for name in names), strict=True):
            if worker is not None:
                mine = self.workers.setdefault(worker, {"rows": 0, "tokens": 0, "began": math.inf, "ended": -math.inf})
                mine["rows"] += 1
                mine["tokens"] += tokens or 0
            if at is None:
                continue
            self.token_rate.add(at, tokens or 0)
            self.row_rate.add(at, 1)
            began = at - (took or 0.0)
            self.began = min(self.began, began)
            span = self.active.setdefault(bisect_right(self.starts, at), [began, at])
            span[:] = min(span[0], began), max(span[1], at)
            if worker is not None:
                mine["began"], mine["ended"] = min(mine["began"], began), max(mine["ended"], at)

    def _errors(self, get: Mapping[str, list[Any]]) -> None:
        for id, error in zip(get["id"], get["error"], strict=True):
            if error is None:
                continue
            self.errors += 1
            key = (str(error.get("stage")), str(error.get("type")))
            if key not in self.kinds and len(self.kinds) >= ERROR_KINDS:
                key = ("other", "other")
            kind = self.kinds.setdefault(key, {"stage": key[0], "type": key[1], "count": 0, "samples": []})
            kind["count"] += 1
            if len(kind["samples"]) < 3:
                kind["samples"].append({"id": id, "message": _cell(error.get("message"))})

    def _browse(self, table: pa.Table, get: Mapping[str, list[Any]]) -> None:
        room = FIRST_ROWS - len(self.first)
        if room > 0:
            self.first += [_shown(row) for row in table.slice(0, room).to_pylist()]
        taken = min(max(room, 0), table.num_rows)
        for i in range(taken, table.num_rows):
            if get["error"][i] is not None and len(self.failed) < ERROR_ROWS:
                self.failed.append(_shown({name: values[i] for name, values in get.items() if values[i] is not None}))

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
                "workers": [self._worker(name, one) for name, one in sorted(self.workers.items())],
            },
            "finish_reasons": dict(self.reasons.most_common()),
            "distributions": {name: histogram.to_json() for name, histogram in self.histograms.items()},
            "error_kinds": sorted(self.kinds.values(), key=lambda kind: -kind["count"]),
            "tokens_per_forward": _rate(self.tokens, self.forwards),
            "draft_acceptance": _rate(self.accepted, self.drafted),
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

    def _generating(self, facts: Mapping[str, Any]) -> float | None:
        """Seconds from the first start to the last end of a row, over all attempts; else while workers were ready."""
        seconds = sum(end - start for start, end in self.active.values())
        if seconds > 0 or facts.get("attempts", 1) != 1:
            return seconds or None
        workers = [w for w in facts.get("workers") or () if w.get("ready_at") and w.get("ended_at")]
        return max(w["ended_at"] for w in workers) - min(w["ready_at"] for w in workers) if workers else None

    def _over_time(self) -> dict[str, Any]:
        """Rates by the moment rows finished; `at_s` counts from the first row's start."""
        tokens = self.token_rate.rates()
        rows = dict(self.row_rate.rates(self.token_rate.width_s))
        begin = self.began if self.began < math.inf else 0.0
        return {
            "width_s": self.token_rate.width_s,
            "points": [[max(at - begin, 0.0), rate, rows.get(at, 0.0)] for at, rate in tokens],
        }

    @staticmethod
    def _worker(name: str, one: Mapping[str, float]) -> dict[str, Any]:
        seconds = one["ended"] - one["began"] if one["ended"] > one["began"] else None
        return {
            "worker": name,
            "rows": int(one["rows"]),
            "tokens": int(one["tokens"]),
            "seconds": seconds,
            "tokens_per_s": _rate(one["tokens"], seconds),
        }


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
