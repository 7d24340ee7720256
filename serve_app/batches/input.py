"""The lines of a batch file: `{"custom_id": ..., "method": "POST", "url": endpoint, "body": {...}}`.

A line that is not one is an error line of its own and stops nobody else. `survey` reads the file through once, before
a row runs and again when a server goes on with a batch: how many lines, which model, and which lines repeat a custom_id
(they cannot be told apart in the answers, so the first of a name is run and the others are errors).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic_core import from_json

from actors.prepare import MESSAGES, TEXT
from raydecode.corpus.discover import filesystem
from raydecode.corpus.lines import lines_in
from raydecode.corpus.rows import RowFault, block_errors, with_faults
from raydecode.errors import RowError, nearest
from serve_app.limits import too_large

KEYS = ("custom_id", "method", "url", "body")
ID_CHARS = 512
ENVELOPE = 8 << 10
"""Bytes of a line around its body: the custom_id may be written in escapes."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch file."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Survey:
    """total: lines that are not blank; repeats: offsets of lines whose custom_id came before; model: when one alone"""

    total: int
    repeats: frozenset[int]
    model: str | None


def parse(text: str | bytes, endpoint: str, most: int | None = None) -> BatchLine:
    """Raises RowError whose kind is an error code of a batch line. most: bytes of a body (limits.body_bytes)"""
    if most is not None and _size(text) > most + ENVELOPE:
        raise _fault("body_too_large", too_large(most).message)
    try:
        row = from_json(text, allow_inf_nan=False)  # as a body of its own would be read
    except ValueError as error:
        raise _fault("invalid_json_line", f"no JSON: {error}") from None
    if not isinstance(row, dict):
        raise _fault("invalid_json_line", f"a line must hold a JSON object, got {_shown(row)}")
    for name in row:
        if name not in KEYS:
            near = nearest(name, KEYS)
            raise _fault("unknown_parameter", f"a line has no key {name!r}{f' (nearest: {near})' if near else ''}")
    custom_id, body, url = row.get("custom_id"), row.get("body"), row.get("url")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= ID_CHARS:
        raise _fault("invalid_custom_id", f"custom_id must be text of 1 to {ID_CHARS} characters: {_shown(custom_id)}")
    if row.get("method") != "POST":
        raise _fault("invalid_method", f'method must be "POST", got {_shown(row.get("method"))}')
    if url != endpoint:
        raise _fault("mismatched_endpoint", f"url is {_shown(url)}, but the batch is for {endpoint!r}")
    if not isinstance(body, dict):
        raise _fault("invalid_body", f"body must be an object, got {_shown(body)}")
    return BatchLine(custom_id, url, body)


def custom_id(text: bytes | RowError) -> str | None:
    """The custom_id of a line that may be wrong otherwise, or None."""
    try:
        found = from_json(text).get("custom_id") if isinstance(text, bytes) else None
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def lines_of(path: str) -> Iterator[tuple[int, bytes | RowError]]:
    """(offset, text) of every line that is not blank, as the corpus's readers cut them."""
    fs, inner = filesystem(path)
    with fs.open(inner, "rb") as stream:
        for offset, _, text in lines_in(stream, 0, int(fs.info(inner)["size"])):
            yield offset, text


def survey(path: str, most: int) -> Survey:
    """Raises RowError beyond `most` lines."""
    seen: set[str] = set()
    repeats: set[int] = set()
    models: set[str] = set()
    total = 0
    for offset, text in lines_of(path):
        total += 1
        if total > most:
            raise _fault("too_many_requests", f"the file has more than {most:,} lines")
        try:
            row = from_json(text) if isinstance(text, bytes) else None
        except ValueError:
            continue
        if not isinstance(row, dict):
            continue
        id, body = row.get("custom_id"), row.get("body")
        if isinstance(id, str) and id in seen:
            repeats.add(offset)
        elif isinstance(id, str):
            seen.add(id)
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            models.add(body["model"])
    return Survey(total, frozenset(repeats), models.pop() if len(models) == 1 else None)


class Ready:
    """block -> block whose prompts are the lines as they are; lines that are none get their fault. In the place of
    `actors.prepare.Prepare`: the engine behind takes bodies (proxy.py)."""

    def __init__(self, endpoint: str, repeats: frozenset[int], most: int | None = None) -> None:
        self._endpoint, self._repeats, self._most = endpoint, repeats, most

    def __call__(self, block: pa.Table) -> pa.Table:
        faults: dict[int, RowFault] = {}
        texts, keys = block["text"].to_pylist(), block["_key"].to_pylist()
        for i, (text, key, known) in enumerate(zip(texts, keys, block_errors(block), strict=True)):
            if known is None:
                try:
                    line = parse(text, self._endpoint, self._most)
                    if key in self._repeats:
                        raise _fault("duplicate_custom_id", f"an earlier line has the custom_id {line.custom_id!r}")
                except RowError as error:
                    faults[i] = RowFault.of(error, "read")
        block = with_faults(block, faults)
        block = block.append_column(TEXT, pa.array(texts, pa.string()))
        return block.append_column(MESSAGES, pa.nulls(block.num_rows, pa.string()))


def _size(text: str | bytes) -> int:
    """Bytes as they came."""
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _fault(code: str, message: str) -> RowError:
    return RowError("read", code, message)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
