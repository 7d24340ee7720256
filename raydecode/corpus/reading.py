"""How a span of a file becomes a block: rows with positions, ids and errors, then the corpus's columns.

Reading never raises for what a file holds: a bad line is a row with `_error`; a span that cannot be read at all is one
such row that counts as the rows it stands for. Every partition of a file into spans gives the same rows, with the same
ids (property tests).
"""

from __future__ import annotations

import contextlib
import functools
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydecode.corpus import ids
from raydecode.corpus.discover import filesystem
from raydecode.corpus.intervals import Span
from raydecode.corpus.lines import PARSERS, lines_in
from raydecode.corpus.records import InputFile
from raydecode.corpus.rows import BLOCK_ERROR, BLOCK_FIELDS, RowFault
from raydecode.corpus.schema import free_names, is_json, plain, to_columns
from raydecode.corpus.staging import BAD, LINE, RAW
from raydecode.corpus.storage import open_storage
from raydecode.errors import RowError

if TYPE_CHECKING:
    from raydecode.corpus.inputs import Corpus

BLOCK_ROWS = 1024
ROW_BYTES = 256.0  # when nothing is known
BUFFER_BYTES = 1 << 20
GROUP_BYTES = 64 << 20


def read_unit(corpus: Corpus, unit: Span) -> pa.Table:
    """The block of one unit: every row that starts in it."""
    return next(block for _, block in read_units(corpus, [unit]))


def read_units(corpus: Corpus, units: Sequence[Span]) -> Iterator[tuple[Span, pa.Table]]:
    """The blocks of ascending units of one file, which is opened once."""
    if not units:
        return
    file = corpus.file(units[0].input)
    source = _read_table if is_table(file) else _read_lines
    done = 0
    try:
        for unit, block in source(corpus, file, units):
            done += 1
            yield unit, _with_ids(corpus, file, block)
    except Exception as error:  # the file, not a row: gone, no permission, truncated, corrupt
        if len(units) > 1:  # what one unit holds says nothing of the next: each by itself
            for unit in units[done:]:
                yield from read_units(corpus, [unit])
            return
        yield units[0], _unreadable(corpus, file, units[0], RowFault.of(error, "read"))


def needs_index(corpus: Corpus, number: int) -> bool:
    """Ids of this file need a pass over it first (`index_occurrences`), and it was not made yet."""
    file = corpus.file(number)
    if corpus.id is not None or file.size_bytes <= ids.SMALL:
        return False
    fs, path = filesystem(_index_path(corpus, file))
    return not fs.exists(path)


def index_occurrences(corpus: Corpus, number: int) -> None:
    """The pass of `ids`: store which rows of the file repeat earlier ones. Complete or absent; safe to repeat."""
    file = corpus.file(number)
    positions, occurrences = _count_occurrences(corpus, file)
    sink = io.BytesIO()
    pq.write_table(pa.table({"position": positions, "occurrence": occurrences}), sink)
    _put_whole(_index_path(corpus, file), sink.getvalue())


def parse_line(format: str, line: bytes | RowError) -> dict[str, Any]:
    if isinstance(line, RowError):
        raise line
    return free_names(PARSERS[format](line))


def _read_lines(corpus: Corpus, file: InputFile, units: Sequence[Span]) -> Iterator[tuple[Span, pa.Table]]:
    with open_file(file, corpus.root) as handle:
        for unit in units:
            found = list(lines_in(handle, unit.start, unit.stop))
            yield unit, _line_block(corpus, file, found)


def _line_block(corpus: Corpus, file: InputFile, found: Sequence[tuple[int, int, bytes | RowError]]) -> pa.Table:
    rows: list[dict[str, Any] | None] = []
    names: list[str] = []
    errors: list[dict[str, object] | None] = []
    for _, _, line in found:
        try:
            row = parse_line(file.format, line)
            rows.append(row)
            errors.append(None)
            names.append(ids.content_id(row) if corpus.id is None else _given(row.get(corpus.id)))
        except RowError as error:
            rows.append(None)
            errors.append(RowFault.of(error, "read").block_record())
            names.append(ids.bytes_id(line if isinstance(line, bytes) else b""))
    keys, ends = [one[0] for one in found], [one[1] for one in found]
    return _block(corpus, file, keys, ends, names, errors, to_columns(rows, corpus.schema))


def _read_table(corpus: Corpus, file: InputFile, units: Sequence[Span]) -> Iterator[tuple[Span, pa.Table]]:
    with open_file(file, corpus.root) as handle:
        table = _parquet(handle)
        most = corpus.rows_at_once(file.number, BLOCK_ROWS)
        rows = _stream(table, units[0].start, units[-1].stop, most)
        buffered: list[pa.RecordBatch] = []
        at = units[0].start
        for unit in units:
            while at + sum(map(len, buffered)) < unit.stop and (batch := next(rows, None)) is not None:
                buffered.append(batch)
            whole = (
                pa.Table.from_batches(buffered, table.schema_arrow) if buffered else table.schema_arrow.empty_table()
            )
            mine = whole.slice(unit.start - at, unit.size)
            if len(mine) != unit.size:
                raise OSError(f"{file.path} has fewer rows than its footer said ({file.size_positions})")
            buffered, at = whole.slice(unit.stop - at).to_batches(), unit.stop
            yield unit, _table_block(corpus, file, unit.start, mine)


def _parquet(handle: Any) -> pq.ParquetFile:
    """A row group's columns are read whole, in one request each, unless that would be more than GROUP_BYTES of memory:
    then piece by piece."""
    footer = pq.read_metadata(handle)
    groups = (footer.row_group(i) for i in range(footer.num_row_groups))
    largest = max((sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups), default=0)
    return pq.ParquetFile(handle, metadata=footer, buffer_size=BUFFER_BYTES if largest > GROUP_BYTES else 0)


def _stream(table: pq.ParquetFile, start: int, stop: int, most: int) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop), reading only the row groups they lie in, at most `most` rows at a time."""
    at = 0
    for group in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if at + size > start and at < stop:
            inner = at
            for batch in table.iter_batches(most, row_groups=[group]):
                low, high = max(start - inner, 0), min(stop - inner, len(batch))
                if low < high:
                    yield batch.slice(low, high - low)
                inner += len(batch)
        at += size


def _table_block(corpus: Corpus, file: InputFile, start: int, rows: pa.Table) -> pa.Table:
    if LINE in rows.column_names:
        lines = enumerate(staged_lines(rows), start)
        return _line_block(corpus, file, [(at, at + 1, line) for at, line in lines])
    n = rows.num_rows
    errors: list[dict[str, object] | None] = [None] * n
    bad: list[str | None] = [None] * n
    raw: list[str | None] = [None] * n
    if file.staged is not None:
        bad, raw = rows[BAD].to_pylist(), rows[RAW].to_pylist()
        rows = rows.drop_columns([BAD, RAW])
    rows = rows.rename_columns(plain(rows.schema).names)
    rows, odd = _presentable(rows)
    for i, fault in odd.items():
        errors[i] = fault.block_record()
    columns = [_cast(rows, one, errors) for one in corpus.schema]
    values = None if corpus.id is not None else rows.to_pylist()
    given = [_given(v) for v in rows[corpus.id].to_pylist()] if corpus.id in rows.column_names else [""] * n
    names: list[str] = []
    for i in range(n):
        if (why := bad[i]) is not None:
            errors[i] = RowFault.of(_staged_fault(why), "read").block_record()
            names.append(ids.bytes_id((raw[i] or "").encode()))
        else:
            names.append(given[i] if values is None else ids.content_id(values[i]))
    return _block(
        corpus, file, list(range(start, start + n)), list(range(start + 1, start + n + 1)), names, errors, columns
    )


def _presentable(rows: pa.Table) -> tuple[pa.Table, dict[int, RowFault]]:
    """The rows without values that no Python object can be (text that is not UTF-8, a date beyond the year 9999):
    null instead, and a fault of that row. Columns of numbers and flags are not looked at."""
    faults: dict[int, RowFault] = {}
    for place, field in enumerate(rows.schema):
        if pa.types.is_primitive(field.type) and not pa.types.is_temporal(field.type):
            continue
        column = rows.column(place)
        try:
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                column.validate(full=True)
            else:
                column.to_pylist()
        except (ValueError, OverflowError):  # UnicodeDecodeError and pa.ArrowInvalid are ValueErrors
            keep = []
            for i, value in enumerate(column):
                try:
                    value.as_py()
                    keep.append(True)
                except (ValueError, OverflowError) as error:
                    keep.append(False)
                    kind = "InvalidUTF8" if isinstance(error, UnicodeDecodeError) else "InvalidValue"
                    faults.setdefault(i, RowFault("read", kind, f"column {field.name}: {error}"))
            rows = rows.set_column(place, field, pc.if_else(pa.array(keep), column, pa.scalar(None, field.type)))
    return rows, faults


def _staged_fault(text: str) -> RowError:
    kind, _, message = text.partition(": ")
    return RowError("read", kind, message)


def staged_lines(rows: pa.Table | pa.RecordBatch) -> list[bytes | RowError]:
    pairs = zip(rows[LINE].to_pylist(), rows[BAD].to_pylist(), strict=True)
    return [line if bad is None else _staged_fault(bad) for line, bad in pairs]


def _cast(rows: pa.Table, field: pa.Field, errors: list[dict[str, object] | None]) -> pa.Array | pa.ChunkedArray:
    """A column in the corpus's type. A value that has no place there is null, and its row gets an error."""
    if field.name not in rows.column_names:
        return pa.nulls(rows.num_rows, field.type)
    column = rows[field.name]
    if is_json(field) and not pa.types.is_string(column.type):
        return to_columns([{field.name: v} for v in column.to_pylist()], pa.schema([field]))[0]
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid:
        pass
    values: list[pa.Scalar] = []
    for i, value in enumerate(column):
        try:
            values.append(value.cast(field.type))
        except pa.ArrowInvalid as error:
            values.append(pa.scalar(None, field.type))
            errors[i] = errors[i] or RowFault("read", "InvalidValue", f"column {field.name}: {error}").block_record()
    return pa.array([value.as_py() for value in values], field.type)


def _block(
    corpus: Corpus,
    file: InputFile,
    keys: Sequence[int],
    ends: Sequence[int],
    names: Sequence[str],
    errors: list[dict[str, object] | None],
    columns: Sequence[pa.Array | pa.ChunkedArray],
) -> pa.Table:
    named: list[str] = []
    for i, name in enumerate(names):
        if not name:  # a given id that is null
            name = f"row-{file.number}-{keys[i]}"
            if corpus.id is not None and errors[i] is None:
                errors[i] = RowFault("read", "MissingId", f"column {corpus.id} is empty").block_record()
        named.append(name)
    head = [
        pa.array([file.number] * len(keys), pa.int32()),
        pa.array(keys, pa.int64()),
        pa.array(ends, pa.int64()),
        pa.array(named, pa.string()),
        pa.array(errors, BLOCK_ERROR),
    ]
    return pa.table([*head, *columns], schema=corpus.block_schema())


def _unreadable(corpus: Corpus, file: InputFile, unit: Span, fault: RowFault) -> pa.Table:
    size = max(1, round(corpus.rows_in(unit)))
    if is_table(file) and file.size_positions <= 1:
        size = max(1, int(file.size_bytes // ROW_BYTES))  # no footer: its rows can only be guessed
    error = {
        **fault.block_record(),
        "message": f"{file.path} [{unit.start}, {unit.stop}): {fault.message}",
        "weight": size,
    }
    columns = [pa.nulls(1, one.type) for one in corpus.schema]
    name = f"unreadable-{file.number}-{unit.start}-{unit.stop}"
    return _block(corpus, file, [unit.start], [unit.stop], [name], [error], columns)


def _given(value: object) -> str:
    """The text of an id. A lone surrogate cannot be stored: its escape can, and stays different from others."""
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _with_ids(corpus: Corpus, file: InputFile, block: pa.Table) -> pa.Table:
    """Append occurrences to content ids."""
    if corpus.id is not None or block.num_rows == 0:
        return block
    positions, occurrences = _occurrences(_Cached(corpus, file))
    keys = block["_key"].to_numpy()
    at = np.searchsorted(positions, keys)
    hit = at < len(positions)
    hit[hit] = positions[at[hit]] == keys[hit]
    if not hit.any():
        return block
    names = block["_id"].to_pylist()
    for i in np.flatnonzero(hit):
        names[i] = ids.with_occurrence(names[i], int(occurrences[at[i]]))
    place = block.schema.get_field_index("_id")
    return block.set_column(place, BLOCK_FIELDS[3], pa.array(names, pa.string()))


@dataclass(frozen=True)
class _Cached:
    """Key of the occurrence cache: a file of a job, by identity and not by its megabytes of metadata."""

    corpus: Corpus
    file: InputFile

    def __hash__(self) -> int:
        return hash((self.corpus.root, self.file))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Cached) and (self.corpus.root, self.file) == (other.corpus.root, other.file)


@functools.lru_cache(maxsize=8)
def _occurrences(key: _Cached) -> tuple[np.ndarray, np.ndarray]:
    if key.file.size_bytes <= ids.SMALL:
        return _count_occurrences(key.corpus, key.file)
    fs, path = filesystem(_index_path(key.corpus, key.file))
    with fs.open(path, "rb") as file:
        table = pq.read_table(file)
    return table["position"].to_numpy(), table["occurrence"].to_numpy()


def _count_occurrences(corpus: Corpus, file: InputFile) -> tuple[np.ndarray, np.ndarray]:
    step = corpus.rows_at_once(file.number, BLOCK_ROWS) if is_table(file) else 1 << 20
    units = [Span(file.number, at, min(at + step, file.size_positions)) for at in range(0, file.size_positions, step)]
    source = _read_table if is_table(file) else _read_lines
    corpus = replace(corpus, schema=pa.schema([]))  # ids come from the values as read: no columns need be built

    def rows() -> Iterator[tuple[int, str]]:
        try:
            for _, block in source(corpus, file, units):
                yield from zip(block["_key"].to_pylist(), block["_id"].to_pylist(), strict=True)
        except Exception:
            return  # from here on the file cannot be read: its rows become error rows with ids of their own

    return ids.repeats(rows())


def _index_path(corpus: Corpus, file: InputFile) -> str:
    return f"{corpus.root}/_input/{file.number}-{zlib.crc32(f'{file.path} {file.stamp}'.encode()):08x}.repeats"


def _put_whole(url: str, data: bytes) -> None:
    """Complete or absent, also under two writers (who write the same)."""
    folder, _, name = url.rpartition("/")
    storage = open_storage(folder)
    with contextlib.suppress(FileExistsError):
        storage.create_exclusive(name, data)


def is_table(file: InputFile) -> bool:
    return file.format == "parquet" or file.staged is not None


def open_file(file: InputFile, root: str) -> Any:
    fs, path = filesystem(f"{root}/{file.staged}" if file.staged is not None else file.path)
    return fs.open(path, "rb")
