"""Committed rows to OpenAI's result files, in the order of the input.

    {"id": ..., "custom_id": ..., "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}

Answers with a status below 400 go to the output file, all else to the error file. Where there was no answer at all
`response` is null and `error` says why: a line that is none, a batch that was cancelled or that expired. Every line of
the input is in exactly one of the two.

Memory: the parts whose positions overlap, which are few, for rows are leased in order.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from raydecode.corpus.history import parts_of, replay
from raydecode.corpus.storage import Storage
from raydecode.errors import RaydecodeError
from serve_app.batches.files import FileStore
from serve_app.batches.input import custom_id, lines_of

ENDED = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was answered"),
    "expired": ("batch_expired", "the completion window of the batch ended before this request was answered"),
    "completed": ("no_answer", "this request has no answer"),
}
"""Why a batch ends -> the error of lines that have no row by then."""


class Superseded(RaydecodeError):
    """Another server ended the batch meanwhile: the rows that were read may have been on their way out."""


@dataclass(slots=True)
class Tally:
    """What the lines came to."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: dict[str, int] = field(default_factory=lambda: {"input": 0, "output": 0, "cached": 0, "reasoning": 0})

    def counts(self) -> dict[str, int]:
        return {"total": self.total, "completed": self.completed, "failed": self.failed}

    def usage_json(self) -> dict[str, Any]:
        """OpenAI's usage of a batch."""
        one = self.usage
        return {
            "input_tokens": one["input"],
            "input_tokens_details": {"cached_tokens": one["cached"]},
            "output_tokens": one["output"],
            "output_tokens_details": {"reasoning_tokens": one["reasoning"]},
            "total_tokens": one["input"] + one["output"],
        }

    def add(self, line: Mapping[str, Any]) -> None:
        self.total += 1
        if failed(line):
            self.failed += 1
            return
        self.completed += 1
        usage = line["response"]["body"].get("usage")
        if isinstance(usage, dict):
            self.usage["input"] += _first(usage, "input_tokens", "prompt_tokens")
            self.usage["output"] += _first(usage, "output_tokens", "completion_tokens")
            inputs = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
            outputs = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
            self.usage["cached"] += _first(inputs, "cached_tokens")
            self.usage["reasoning"] += _first(outputs, "reasoning_tokens")


def failed(line: Mapping[str, Any]) -> bool:
    """The line belongs into the error file."""
    return line["response"] is None or int(line["response"]["status_code"]) >= 400


def result_lines(batch: str, path: str, rows: Storage, why: str) -> Iterator[dict[str, Any]]:
    """The result of every line of the input file at `path`, in its order. rows: the batch's output; why: it ended."""
    committed = rows_in_order(rows)
    row = next(committed, None)
    for number, (offset, text) in enumerate(lines_of(path), start=1):
        while row is not None and row[0] < offset:
            row = next(committed, None)
        mine, out = (row if row is not None and row[0] == offset else None), _empty(batch, offset, custom_id(text))
        if mine is None:
            code, message = ENDED[why]
            out["error"] = {"code": code, "message": message}
        elif mine[1]:
            out["response"] = json.loads(mine[1])
        else:
            fault = mine[2] or {"type": "no_answer", "message": ENDED["completed"][1]}
            out["error"] = {"code": _code(fault["type"]), "message": f"line {number}: {fault['message']}"}
        yield out


def write(
    files: FileStore, batch: str, path: str, rows: Storage, why: str, *, ids: Mapping[bool, str], owner: str,
    at: float, expires_after_s: int | None = None, over: Callable[[], bool] = lambda: False,
) -> tuple[Tally, str | None, str | None]:  # fmt: skip
    """Both files (None: no line for it), and the sums. ids: False -> of the output file, True -> of the error file; the
    same call again, after a crash in it or at the same time elsewhere, makes the same files. over: the batch has ended,
    whose rows go then; asked behind the last row and before there is a file. Raises Superseded when it has."""
    tally, made = Tally(), dict[bool, str | None]()
    for wrong, name in ((False, "output"), (True, "error")):
        found = _unless(over, result_lines(batch, path, rows, why))
        if not wrong:
            found = _counted(found, tally)
        mine = (json.dumps(one, ensure_ascii=False) + "\n" for one in found if failed(one) is wrong)
        first = next(mine, None)
        made[wrong] = None
        if first is not None:
            chunks = (line.encode("utf-8", "replace") for line in itertools.chain([first], mine))
            made[wrong] = files.create(
                chunks, filename=f"{batch}_{name}.jsonl", purpose="batch_output", owner=owner, id=ids[wrong], at=at,
                expires_after_s=expires_after_s,
            ).id  # fmt: skip
            for _ in mine:  # the file was there already: go on counting
                pass
    return tally, made[False], made[True]


def rows_in_order(storage: Storage) -> Iterator[tuple[int, str | None, dict[str, Any] | None]]:
    """(offset, text, error) of all committed rows, by offset."""
    parts = [part for part in parts_of(storage, start=max(0, replay(storage).job_at)) if part.rows]
    parts.sort(key=lambda part: part.cover.spans()[0].start)
    heap: list[tuple[int, str | None, dict[str, Any] | None]] = []
    for part in parts:
        start = part.cover.spans()[0].start
        while heap and heap[0][0] < start:
            yield heapq.heappop(heap)
        table = pq.read_table(io.BytesIO(storage.read(part.name)), columns=["_key", "text", "error"])
        for row in zip(*(table[name].to_pylist() for name in ("_key", "text", "error")), strict=True):
            heapq.heappush(heap, row)
    while heap:
        yield heapq.heappop(heap)


def _unless(over: Callable[[], bool], lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from lines
    if over():
        raise Superseded("the batch has ended")


def _counted(lines: Iterator[dict[str, Any]], tally: Tally) -> Iterator[dict[str, Any]]:
    for line in lines:
        tally.add(line)
        yield line


def _empty(batch: str, offset: int, custom_id: str | None) -> dict[str, Any]:
    id = hashlib.blake2b(f"{batch}:{offset}".encode(), digest_size=16).hexdigest()
    return {"id": f"batch_req_{id}", "custom_id": custom_id, "response": None, "error": None}


def _code(type: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type).lower()


def _first(usage: Mapping[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := usage.get(name), int)), 0)
