"""The rows of the output: one Arrow schema for every part of a job, so that all parts concatenate.

    id | sample | the input's columns | chosen output columns | error | _input | _key

One output row per sample of an input row. An input column whose name is taken by the output is kept as
`input_<name>` (`OutputSchema.renamed`), except the id column when it is itself called `id`: `id` is that column.
`_input`, `_key` say where the row came from: file number and position, the job's internal key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raydecode.columns import COLUMNS, Kind
from raydecode.corpus.intervals import Span
from raydecode.corpus.schema import INTERNAL, JSON, is_json, row_values
from raydecode.errors import RowError, UserError, nearest

ERROR = pa.struct([("stage", pa.string()), ("type", pa.string()), ("message", pa.string()), ("tries", pa.int32())])

TYPES: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "json": pa.string(),
    "count": pa.int32(),
    "number": pa.float64(),
    "seconds": pa.float64(),
    "ids": pa.list_(pa.int32()),
    "logprobs": pa.list_(pa.float32()),
    "alternatives": pa.list_(pa.list_(pa.struct([("token", pa.int32()), ("logprob", pa.float32())]))),
}

BLOCK_ERROR = pa.struct([*ERROR, pa.field("weight", pa.int64())])
BLOCK_FIELDS = [
    pa.field("_input", pa.int32()),
    pa.field("_key", pa.int64()),
    pa.field("_end", pa.int64()),
    pa.field("_id", pa.string()),
    pa.field("_error", BLOCK_ERROR),
]
_MESSAGE_CHARS = 2000


@dataclass(frozen=True, slots=True)
class RowFault:
    """The `error` record of a row.

    stage:  read | template | decoding | admission | engine | method
    weight: rows it stands for in max_error_rate (more than 1: a span of a file that cannot be read)
    """

    stage: str
    type: str
    message: str
    tries: int = 1
    weight: int = 1

    @classmethod
    def of(cls, error: BaseException, stage: str, tries: int = 1) -> RowFault:
        """Any exception as a record; a RowError names its own stage."""
        if isinstance(error, RowError):
            return cls(error.stage, error.kind, error.message[:_MESSAGE_CHARS], tries)
        return cls(stage, type(error).__name__, str(error)[:_MESSAGE_CHARS], tries)

    def record(self) -> dict[str, object]:
        return {"stage": self.stage, "type": self.type, "message": _clean(self.message), "tries": self.tries}

    def block_record(self) -> dict[str, object]:
        return self.record() | {"weight": self.weight}


@dataclass(frozen=True, slots=True)
class Sample:
    """What came of one sample of one row. `columns`: output columns by name; those not chosen are ignored."""

    columns: Mapping[str, object] = field(default_factory=dict)
    error: RowFault | None = None
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A row that is ready for a part: row `index` of `block`, its span, its samples (one key, one commit)."""

    span: Span
    block: pa.Table
    index: int
    samples: tuple[Sample, ...]


class OutputSchema:
    """The output's schema for one job.

    inputs:  the corpus's columns (`Corpus.schema`)
    columns: chosen output columns; names of `raydecode.columns.COLUMNS` or of `extra`
    id:      the given id column, or None
    extra:   columns that methods add, with their types
    """

    def __init__(
        self,
        inputs: pa.Schema,
        columns: Sequence[str],
        id: str | None = None,
        extra: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        known = {name: TYPES[one.kind] for name, one in COLUMNS.items()} | dict(extra or {})
        for i, name in enumerate(columns):
            if name not in known:
                raise UserError(
                    f"no output column {name!r}",
                    field=f"output.columns[{i}]",
                    value=name,
                    nearest=nearest(name, known),
                    hint="all: " + ", ".join(sorted(known)),
                )
        self.columns = tuple(dict.fromkeys(columns))
        self.types = {name: known[name] for name in self.columns}
        taken = {"id", "sample", "error", "_input", "_key", *self.columns}
        free = taken | {one.name for one in inputs}
        self.renamed: dict[str, str] = {}
        kept: list[pa.Field] = []
        self.inputs: tuple[tuple[str, str], ...] = ()
        for one in inputs:
            name = one.name
            if name == "id" and id == "id":
                continue
            while name in taken or (name != one.name and name in free):
                name = f"input_{name}"
            if name != one.name:
                self.renamed[one.name] = name
            free.add(name)
            kept.append(pa.field(name, one.type, metadata=JSON if is_json(one) else None))  # `explain` reads it back
            self.inputs += ((one.name, name),)
        self.schema = pa.schema(
            [
                pa.field("id", pa.string()),
                pa.field("sample", pa.int32()),
                *kept,
                *[pa.field(name, kind) for name, kind in self.types.items()],
                pa.field("error", ERROR),
                pa.field("_input", pa.int32()),
                pa.field("_key", pa.int64()),
            ]
        )

    def table(self, rows: Sequence[Finished]) -> pa.Table:
        """The rows as a table of exactly `schema`, in the order given. Column by column; never fails for a value
        that a method returned with the wrong type: that row gets an error record instead."""
        if not rows:
            return self.schema.empty_table()
        source, order = _gather(rows)
        repeat = np.repeat(order, [len(row.samples) for row in rows])
        samples = [(row, sample) for row in rows for sample in row.samples]
        errors: list[dict[str, Any] | None] = [s.error.record() if s.error else None for _, s in samples]
        out: dict[str, pa.Array | pa.ChunkedArray] = {
            "id": source["_id"].take(repeat),
            "sample": pa.array([s.sample for _, s in samples], pa.int32()),
            "_input": pa.array([row.span.input for row, _ in samples], pa.int32()),
            "_key": pa.array([row.span.start for row, _ in samples], pa.int64()),
        }
        for old, new in self.inputs:
            out[new] = source[old].take(repeat).cast(self.schema.field(new).type)
        for name, kind in self.types.items():
            out[name] = _column(name, [s.columns.get(name) for _, s in samples], kind, errors)
        out["error"] = pa.array(errors, ERROR)
        return pa.table([out[name] for name in self.schema.names], schema=self.schema)


def block_spans(block: pa.Table) -> list[Span]:
    """The span of each row of a block."""
    numbers, keys, ends = (block[name].to_pylist() for name in ("_input", "_key", "_end"))
    return [Span(*one) for one in zip(numbers, keys, ends, strict=True)]


def block_errors(block: pa.Table) -> list[RowFault | None]:
    """The fault that a reading or CPU stage found in each row of a block."""
    return [None if one is None or one["stage"] is None else RowFault(**one) for one in block["_error"].to_pylist()]


def with_faults(block: pa.Table, faults: Mapping[int, RowFault]) -> pa.Table:
    """The block with further faults, by row. A row that has one keeps its first."""
    if not faults:
        return block
    records = block["_error"].to_pylist()
    for i, fault in faults.items():
        if records[i] is None or records[i]["stage"] is None:
            records[i] = fault.block_record()
    at = block.schema.get_field_index("_error")
    return block.set_column(at, BLOCK_FIELDS[-1], pa.array(records, BLOCK_ERROR))


def block_rows(block: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a block as their file had them, for templates: without the internal columns, JSON columns parsed,
    `_extra` merged back."""
    nested = [field.name for field in block.schema if is_json(field)]
    for row in block.drop_columns([name for name in INTERNAL if name in block.column_names]).to_pylist():
        yield row_values(row, nested)


def row_spec(value: object) -> dict[str, Any] | None:
    """A `decoding` cell as overrides: JSON text (the canonical form), an Arrow struct or map; None or empty = none.

    A struct column gives every row every field, so nulls mean "not given" and are dropped, at every depth.
    Parses only; whether the fields exist is the config's business. Raises RowError(stage="decoding").
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(
                "decoding", "InvalidJSON", f"the decoding column is no JSON: {error}: {_cut(value)}"
            ) from None
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            return row_spec(value)  # a column with texts and objects keeps its texts as JSON of JSON
        if value is not None and not isinstance(value, dict):
            raise RowError("decoding", "InvalidSpec", f"the decoding column must hold an object, found {_cut(value)}")
        return value or None
    if isinstance(value, (list, tuple)) and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        value = dict(value)  # an Arrow map
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RowError("decoding", "InvalidSpec", f"the decoding column must hold an object, found {_cut(value)}")
    return _without_nulls(value) or None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _gather(rows: Sequence[Finished]) -> tuple[pa.Table, np.ndarray]:
    """All rows of the distinct blocks that `rows` touch, taken once per block, and each row's place in it."""
    blocks: dict[int, tuple[pa.Table, list[int], list[int]]] = {}
    for place, row in enumerate(rows):
        blocks.setdefault(id(row.block), (row.block, [], []))[1].append(row.index)
        blocks[id(row.block)][2].append(place)
    order = np.empty(len(rows), dtype=np.int64)
    taken, at = [], 0
    for block, indices, places in blocks.values():
        taken.append(block.take(indices))
        order[places] = np.arange(at, at + len(indices))
        at += len(indices)
    return pa.concat_tables(taken, promote_options="permissive"), order


def _column(name: str, values: list[object], kind: pa.DataType, errors: list[dict[str, Any] | None]) -> pa.Array:
    if kind == pa.string():
        values = [_clean(v) if isinstance(v, str) else v for v in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    for i, value in enumerate(values):
        try:
            pa.array([value], kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            values[i] = None
            errors[i] = (
                errors[i] or RowFault("method", "WrongType", f"column {name}: {error}"[:_MESSAGE_CHARS]).record()
            )
    return pa.array(values, kind)


def _clean(text: str) -> str:
    """Lone surrogates cannot be stored as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
