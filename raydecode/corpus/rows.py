"""The rows of the output: one Arrow schema for every part of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raydecode.corpus.intervals import Span
from raydecode.errors import RowError

ERROR = pa.struct(
    [("stage", pa.string()), ("type", pa.string()), ("message", pa.string()), ("tries", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class RowFault:
    """The `error` record of a row."""

    stage: str
    type: str
    message: str
    tries: int = 1
    weight: int = 1  # rows it stands for in max_error_rate (an unreadable span)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the engine said about one sample of one row. `columns` holds chosen output columns by name."""

    sample: int
    columns: Mapping[str, object]
    error: RowFault | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """A finished row: its span, its id, its input columns and one or more samples (one key, one commit)."""

    span: Span
    id: str
    inputs: Mapping[str, object]
    samples: tuple[Sample, ...]


class OutputSchema:
    """id, sample, input columns, output columns, error, _input, _key. Input columns that collide are renamed
    `input_<name>`."""

    def __init__(self, inputs: pa.Schema, columns: Sequence[str]) -> None: ...

    schema: pa.Schema
    renamed: dict[str, str]

    def table(self, rows: Sequence[RowResult]) -> pa.Table: ...


def row_spec(value: object) -> dict[str, object] | None:
    """A `decoding` cell (JSON text, Arrow struct or map, None) as overrides. Raises RowError(stage="decoding")."""
    raise NotImplementedError
