"""Files that cannot be cut at a byte (compressed, CSV with newlines in quotes): once, a copy that can.

The copy is Parquet under `_input/`, named by path and stamp, written beside its name and moved there when complete,
so an interrupted staging leaves nothing that counts. Line formats are copied line by line (column `_line`) and parsed
later like any other line, so their errors are the same. CSV becomes columns of text: "007" stays "007"; a record with
the wrong number of fields or with bytes that are not UTF-8 keeps its place as a row with `_bad` and `_raw`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raydecode.corpus.discover import compression, filesystem
from raydecode.corpus.lines import lines_in
from raydecode.corpus.records import InputFile
from raydecode.errors import UserError

LINE, BAD, RAW = "_line", "_bad", "_raw"
_GROUP_ROWS = 8192
_GROUP_BYTES = 8 << 20  # of text held before it is written
_BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)  # of a file that ends or turns to noise


def needs_staging(file: InputFile) -> bool:
    """True for CSV and for compressed files that were not staged yet."""
    return (
        file.staged is None
        and file.format != "parquet"
        and (file.format == "csv" or compression(file.path) is not None)
    )


def stage(file: InputFile, root: str) -> InputFile:
    """The file with its staged copy below `root`, made now or found there. One reader per file; streaming.

    A file that cannot be read to its end is staged up to there, with one last row for the fault. A copy that the log
    knows and somebody removed is made again; with other rows than before it is refused (UserError).
    """
    name = (
        file.staged
        or f"_input/{file.number}-{zlib.crc32(f'{file.format} {file.path} {file.stamp}'.encode()):08x}.parquet"
    )
    fs, target = filesystem(f"{root}/{name}")
    if not fs.exists(target):
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        try:
            _write(fs, temporary, file)
            fs.mv(temporary, target)
        finally:
            if fs.exists(temporary):
                fs.rm_file(temporary)
    with fs.open(target, "rb") as copy:
        rows = pq.ParquetFile(copy).metadata.num_rows
    if file.staged is not None and rows != file.size_positions:
        raise UserError(
            f"{file.path} had {file.size_positions} rows when this output was begun and has {rows} now",
            field="input.path",
            value=file.path,
            hint="put the file back as it was, or choose a new output.path",
        )
    return replace(file, staged=name, size_positions=rows)


def _write(fs: fsspec.AbstractFileSystem, path: str, file: InputFile) -> None:
    source = _csv_tables(file) if file.format == "csv" else _line_tables(file)
    writer: pq.ParquetWriter | None = None
    with fs.open(path, "wb") as sink:
        try:
            for table in source:
                writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        finally:
            if writer is not None:
                writer.close()


def _line_tables(file: InputFile) -> Iterator[pa.Table]:
    schema = pa.schema([(LINE, pa.binary()), (BAD, pa.string())])
    yield schema.empty_table()
    lines: list[tuple[bytes | None, str | None]] = []
    size = 0
    try:
        with _open(file) as source:
            for _, _, text in lines_in(_Forward(source), 0, sys.maxsize):
                lines.append((text, None) if isinstance(text, bytes) else (None, f"{text.kind}: {text.message}"))
                size += len(text) if isinstance(text, bytes) else 0
                if len(lines) >= _GROUP_ROWS or size >= _GROUP_BYTES:
                    yield _table(lines, schema)
                    lines, size = [], 0
    except _BROKEN as error:
        lines.append((None, f"{type(error).__name__}: nothing can be read from here on: {error}"))
    if lines:
        yield _table(lines, schema)


def _table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def _csv_tables(file: InputFile) -> Iterator[pa.Table]:
    csv.field_size_limit(1 << 30)
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(_open(file))
            text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
            delimiter = "\t" if ".tsv" in file.path.lower() else ","
            reader = csv.reader(text, delimiter=delimiter, strict=False)
            header = _unique(next(reader, []))
        except (*_BROKEN, csv.Error) as error:  # gone, no permission, noise: one row says so, the other files go on
            schema = pa.schema([(BAD, pa.string()), (RAW, pa.string())])
            yield _table([_csv_row(f"{type(error).__name__}: nothing can be read: {error}", 0)], schema)
            return
        schema = pa.schema([*((name, pa.string()) for name in header), (BAD, pa.string()), (RAW, pa.string())])
        yield schema.empty_table()
        rows: list[list[str | None]] = []
        size = 0
        for record in _csv_records(reader):
            rows.append(_csv_row(record, len(header)))
            size += sum(map(len, record))
            if len(rows) >= _GROUP_ROWS or size >= _GROUP_BYTES:
                yield _table(rows, schema)
                rows, size = [], 0
        if rows:
            yield _table(rows, schema)


def _csv_records(reader: Iterator[list[str]]) -> Iterator[list[str] | str]:
    """Records; a text says why one, or everything from there on, cannot be read."""
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            yield f"InvalidCSV: {error}"
        except _BROKEN as error:
            yield f"{type(error).__name__}: nothing can be read from here on: {error}"
            return
        else:
            if record is None:
                return
            if record:
                yield record


def _csv_row(record: list[str] | str, width: int) -> list[str | None]:
    if isinstance(record, str):
        return [*[None] * width, record, record]
    raw = json.dumps(record)
    if len(record) != width:
        return [*[None] * width, f"InvalidCSV: {len(record)} fields, the header has {width}: {raw[:200]}", raw]
    try:
        for cell in record:
            cell.encode()
    except UnicodeEncodeError:
        return [*[None] * width, f"InvalidUTF8: a field is not UTF-8: {raw[:200]}", raw]
    return [*record, None, None]


def _unique(header: list[str]) -> list[str]:
    out: list[str] = []
    for i, name in enumerate(header):
        name = name.encode("utf-8", "replace").decode() or f"column_{i + 1}"
        while name in out or name in (LINE, BAD, RAW):
            name += "_"
        out.append(name)
    return out


def _open(file: InputFile) -> Any:
    fs, path = filesystem(file.path)
    return fs.open(path, "rb", compression=compression(file.path))


class _Forward(io.RawIOBase):
    """A stream that is read from its start once: the only seek that `lines_in` asks for is to 0."""

    def __init__(self, source: Any) -> None:
        self._read = getattr(source, "read1", source.read)  # `read` of a truncated file drops what it had unpacked

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset or whence:
            raise io.UnsupportedOperation("seek")
        return 0

    def read(self, size: int = -1) -> bytes:
        return self._read(size)
