"""A corpus as positions and blocks: open it, plan what is missing, read a unit.

    files  = discover(paths, known=state.inputs, done=state.done)
    files  = [stage(f, root) if needs_staging(f) else f for f in files]       # CSV, compressed files
    corpus = open_corpus(files, id=..., needs=renderer.needs, root=output_url)
    for f in files: if needs_index(corpus, f.number): index_occurrences(corpus, f.number)
    planned = plan_units(corpus, log.state.done, max_actors=4)
    for group in group_reads(corpus, planned):                                 # one reading task each
        for unit, block in read_units(corpus, group): ...

Positions: row number in Parquet (also staged copies); byte offset of the line elsewhere. A block has the columns of
`rows.BLOCK_FIELDS`, then the corpus's columns. Reading never raises for what a file holds: a bad line is a row with
`_error`, a span that cannot be read is one such row that counts as the rows it stands for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydecode.corpus.discover import discover
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.lines import lines_in
from raydecode.corpus.reading import (
    BLOCK_ROWS,
    BUFFER_BYTES,
    ROW_BYTES,
    index_occurrences,
    is_table,
    needs_index,
    open_file,
    parse_line,
    read_unit,
    read_units,
    staged_lines,
)
from raydecode.corpus.records import InputFile
from raydecode.corpus.rows import BLOCK_FIELDS
from raydecode.corpus.schema import EXTRA, infer_json, is_json, plain, unify
from raydecode.corpus.staging import BAD, LINE, RAW, needs_staging, stage
from raydecode.errors import RowError, UserError, nearest

__all__ = [
    "Corpus",
    "InputFile",
    "discover",
    "group_reads",
    "index_occurrences",
    "needs_index",
    "needs_staging",
    "open_corpus",
    "plan_units",
    "read_unit",
    "read_units",
    "stage",
]

HEAD_BYTES = 1 << 20  # of a file, sampled for its columns
HEAD_ROWS = 1000
HEAD_FILES = 200  # of each kind, evenly spaced; Parquet footers are all read
PEEK_ROWS = 16  # of a Parquet file's head
TASK_BYTES = 8 << 20
TASK_ROWS = 8192


@dataclass(frozen=True)
class Corpus:
    """Everything a reader needs; small and picklable.

    schema:        the input columns (without the internal ones of a block)
    id:            the column that names a row, or None: content hash + occurrence
    row_positions: mean positions of a row of each file: its bytes, estimated from the file's head; 1 in a table
    row_bytes:     mean bytes of a row of each file once it is read, estimated from head or footer
    root:          the output's URL; staged copies and occurrence indexes lie in its `_input/`
    """

    files: tuple[InputFile, ...]
    schema: pa.Schema
    id: str | None
    row_positions: tuple[float, ...]
    row_bytes: tuple[float, ...]
    root: str

    def file(self, number: int) -> InputFile:
        return self.files[self._place[number]]

    @property
    def format(self) -> str:
        """The format of all files, or "auto" when they have several."""
        formats = {file.format for file in self.files}
        return formats.pop() if len(formats) == 1 else "auto"

    def only(self, number: int) -> Corpus:
        """The corpus of one file, for a task that reads it: 10,000 files are a megabyte of metadata."""
        i = self._place[number]
        return replace(
            self,
            files=(self.files[i],),
            row_positions=(self.row_positions[i],),
            row_bytes=(self.row_bytes[i],),
        )

    def rows_in(self, span: Span) -> float:
        """Rows of a span: exact for Parquet, an estimate for lines."""
        return span.size / self.row_positions[self._place[span.input]]

    def rows_at_once(self, number: int, most: int) -> int:
        """Rows of a file that fit one reading task's bytes: at most `most`, at least one."""
        return max(1, min(most, int(TASK_BYTES / self.row_bytes[self._place[number]])))

    def json_columns(self) -> tuple[str, ...]:
        """Columns that hold JSON text for nested or mixed values."""
        return tuple(one.name for one in self.schema if is_json(one))

    def block_schema(self) -> pa.Schema:
        return pa.schema([*BLOCK_FIELDS, *self.schema])

    @functools.cached_property
    def _place(self) -> dict[int, int]:
        return {file.number: i for i, file in enumerate(self.files)}


def open_corpus(
    files: Sequence[InputFile],
    *,
    id: str | None = None,
    needs: Sequence[str] = (),
    root: str,
    schema: pa.Schema | None = None,
) -> Corpus:
    """Sample the files: columns and row sizes. Raises UserError: nothing to read, a column that is not there.

    schema: the log's, for a job that is resumed: the columns stay what they were.
    """
    heads = _heads(files, root)
    if not any(file.size_positions for file in files):
        raise UserError(
            "the corpus is empty: " + ", ".join(file.path for file in files[:3]),
            field="input.path",
            value=[file.path for file in files[:3]],
            hint="the files exist but hold no row",
        )
    known = [(file.path, head.schema) for file, head in zip(files, heads, strict=True) if head.schema is not None]
    if schema is None:
        if not any(len(one) for _, one in known):
            faults = [f"{file.path}: {head.fault}" for file, head in zip(files, heads, strict=True) if head.fault]
            raise UserError(
                "no input file can be read: " + "; ".join(faults[:3] or ["no valid row in any file's head"]),
                field="input.path",
                value=[file.path for file in files[:3]],
            )
        try:
            schema = unify(known)
        except pa.ArrowTypeError as error:
            raise UserError(
                f"the input files do not share one schema: {error}",
                field="input.path",
                value=[file.path for file in files[:3]],
                hint="run them as separate jobs, or cast the column",
            ) from error
        if any(file.format in ("jsonl", "openai") for file in files):
            schema = schema.append(pa.field(EXTRA, pa.string()))
    else:
        _refuse_new_columns(files, heads, schema)
    names = [name for name in schema.names if name != EXTRA]
    if id is None and any(file.format == "openai" for file in files) and all(file.format == "openai" for file in files):
        id = "custom_id"
    for field, name in [("input.id", id), *(("prompt", one) for one in needs)]:
        if name is not None and name not in names:
            raise UserError(
                f"the input has no column {name!r}",
                field=field,
                value=name,
                nearest=nearest(name, names),
                hint="columns: " + ", ".join(names),
            )
    positions, sizes = (tuple(getattr(head, name) for head in heads) for name in ("row_positions", "row_bytes"))
    return Corpus(tuple(files), schema, id, positions, sizes, root)


def plan_units(corpus: Corpus, done: Cover, *, max_actors: int = 1, block_rows: int = BLOCK_ROWS) -> list[Span]:
    """What is missing, cut into units of min(block_rows, rows left / (8 x max_actors)) rows, at least one: large while
    there is much to do, single rows at the end, so that 300 rows spread over 4 actors and the last ones, too. Rows of
    many bytes make smaller units: one is never more than a reading task's bytes, as far as heads and footers tell."""
    missing = [span for file in corpus.files for span in done.missing(file.span)]
    left = sum(corpus.rows_in(span) for span in missing)
    out: list[Span] = []
    for span in missing:
        per_row = span.size / max(corpus.rows_in(span), 1e-9)
        most = corpus.rows_at_once(span.input, block_rows)
        at = span.start
        while at < span.stop:
            rows = min(most, max(1, int(left / (8 * max_actors))))
            stop = min(span.stop, at + max(1, round(rows * per_row)))
            out.append(Span(span.input, at, stop))
            left -= (stop - at) / per_row
            at = stop
    return out


def group_reads(corpus: Corpus, units: Sequence[Span]) -> list[list[Span]]:
    """Units in the order given, in lots that one reading task takes: one file, up to 8 MiB and 8,192 rows."""
    out: list[list[Span]] = []
    rows = 0.0
    for unit in units:
        more = corpus.rows_in(unit)
        full = rows + more > corpus.rows_at_once(unit.input, TASK_ROWS)
        if not out or out[-1][-1].input != unit.input or full or out[-1][-1].stop > unit.start:
            out.append([])
            rows = 0.0
        out[-1].append(unit)
        rows += more
    return out


@dataclass(frozen=True, slots=True)
class _Head:
    schema: pa.Schema | None
    row_positions: float
    row_bytes: float
    fault: str | None = None


def _heads(files: Sequence[InputFile], root: str) -> list[_Head]:
    lines = [i for i, file in enumerate(files) if not is_table(file)]
    tables = [i for i, file in enumerate(files) if is_table(file)]
    sampled = {i for kind in (lines, tables) for i in kind[:: -(-len(kind) // HEAD_FILES) or 1]}
    heads = {i: _head(files[i], root, i in sampled) for i in sorted({*tables, *sampled})}
    sizes = [heads[i].row_bytes for i in lines if i in sampled and heads[i].fault is None]
    size = sum(sizes) / len(sizes) if sizes else ROW_BYTES
    return [heads.get(i, _Head(None, size, size)) for i in range(len(files))]


def _head(file: InputFile, root: str, sampled: bool) -> _Head:
    """Columns and row size. Of a table that is not `sampled`, only the footer is read."""
    try:
        with open_file(file, root) as handle:
            if is_table(file):
                return _table_head(file, pq.ParquetFile(handle, buffer_size=BUFFER_BYTES), sampled)
            found = list(_take(lines_in(handle, 0, min(HEAD_BYTES, file.size_bytes)), HEAD_ROWS))
        size = max(1.0, (found[-1][1] / len(found)) if found else ROW_BYTES)
        return _Head(_infer(file.format, [text for _, _, text in found]), size, size)
    except Exception as error:
        return _Head(None, 1.0 if is_table(file) else ROW_BYTES, ROW_BYTES, f"{type(error).__name__}: {error}")


def _table_head(file: InputFile, table: pq.ParquetFile, sampled: bool) -> _Head:
    """The footer tells encoded bytes: a long text that repeats counts once there. So a few rows are looked at, too."""
    schema, groups = plain(table.schema_arrow), [table.metadata.row_group(i) for i in range(table.num_row_groups)]
    lines = LINE in schema.names
    size = max(1.0, sum(group.total_byte_size for group in groups) / max(1, table.metadata.num_rows))
    batch = next(table.iter_batches(HEAD_ROWS if lines else PEEK_ROWS), None) if lines or sampled else None
    if batch is not None and len(batch):
        size = max(size, batch.nbytes / len(batch))
    if lines:
        return _Head(_infer(file.format, staged_lines(batch) if batch is not None else []), 1.0, size)
    return _Head(pa.schema([f for f in schema if f.name not in (BAD, RAW)]), 1.0, size)


def _refuse_new_columns(files: Sequence[InputFile], heads: Sequence[_Head], schema: pa.Schema) -> None:
    """A table that joins a job with a column of its own would lose it: the output's columns are fixed."""
    for file, head in zip(files, heads, strict=True):
        new = set(head.schema.names if head.schema is not None else ()) - set(schema.names)
        if new and file.format in ("parquet", "csv"):
            raise UserError(
                f"{file.path} has columns that this output was begun without: " + ", ".join(sorted(new)),
                field="input.path",
                value=file.path,
                hint="choose a new output.path for it, or drop the columns",
            )


def _infer(format: str, lines: Sequence[bytes | RowError]) -> pa.Schema:
    rows = []
    for line in lines:
        try:
            rows.append(parse_line(format, line))
        except RowError:
            continue
    return pa.schema([("text", pa.string())]) if format == "text" else infer_json(rows)


def _take(lines: Iterator[Any], n: int) -> Iterator[Any]:
    for _, one in zip(range(n), lines, strict=False):
        yield one
