"""Input files: what there is, where its rows lie, and how a span of it becomes a table.

Positions: row number in Parquet; byte offset of the line elsewhere, and a line belongs to the span where it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from raydecode.corpus.intervals import Cover, Span

Format = Literal["parquet", "jsonl", "csv", "text", "openai"]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file of the job, as the log knows it. `size_positions`: rows (Parquet) or bytes."""

    number: int
    path: str
    format: Format
    size_bytes: int
    stamp: str  # mtime or etag, as text: what tells a changed file
    size_positions: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything `read_unit` needs; small, picklable, sent to every reader.

    schema:  the input columns (without the underscored ones)
    id:      the column that names a row, or None: content hash + occurrence within the file
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    id: str | None
    index_root: str | None  # url of the output's `_input/` (staged copies, occurrence indexes)


def discover(paths: str | Sequence[str], *, format: Format | None = None, known: Sequence[InputFile] = ()) -> list[InputFile]:
    """Expand paths, folders and globs. Files of `known` keep their numbers; a changed one is refused by name."""
    raise NotImplementedError


def open_corpus(files: Sequence[InputFile], *, id: str | None, needs: Sequence[str] = (), index_root: str | None = None) -> Corpus:
    """Read footers and heads: the schema. A missing column (`needs`, `id`) is refused with the nearest name."""
    raise NotImplementedError


def plan_units(corpus: Corpus, done: Cover, *, unit_rows: int) -> list[Span]:
    """The missing ranges, cut into units of about `unit_rows` rows."""
    raise NotImplementedError


def read_unit(corpus: Corpus, unit: Span) -> pa.Table:
    """The rows that start in `unit`: `_input` int32, `_key`, `_end` int64, `_id` string, `_error` struct, then the
    input columns of `corpus.schema` and `_extra` (JSON text: keys and values that do not fit the schema).

    Never raises for what a file holds: bad lines are rows whose `_error` is set; a span that cannot be read at all
    is one such row over the whole span (`_error.weight` rows).
    """
    raise NotImplementedError


def index_occurrences(corpus: Corpus, number: int) -> None:
    """One pass over a file: which rows repeat earlier content. Needed once per file when `corpus.id` is None;
    writes `_input/<number>-<stamp>.occ`, at once complete; does nothing when it is there. Run it before its units are read."""
    raise NotImplementedError


def needs_index(corpus: Corpus, number: int) -> bool: ...
