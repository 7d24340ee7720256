"""The columns of a corpus, fixed before the first row is read, so that every block and every part agrees.

Parquet: the footers, unified. CSV: strings. Text: `text`. JSONL: by a sample of each file's head; a key whose values
are all bool, all integer, all number or all string gets that type; nested or mixed values are kept as JSON text in
a column marked `json` (lossless: an Arrow struct would add nulls that a chat template can see). What does not fit the
sample later (a new key, a text where numbers were, a lone surrogate) goes to `_extra`, one JSON object per row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

INTERNAL = ("_input", "_key", "_end", "_id", "_error")  # columns of a block that never reach the output
EXTRA = "_extra"
RESERVED = (*INTERNAL, EXTRA, "_text", "_messages")  # the last two: prompts beside the rows (actors/prepare.py)
JSON = {b"raydecode": b"json"}
_readable = json.JSONEncoder(ensure_ascii=False).encode
_INT64 = range(-(1 << 63), 1 << 63)


def is_json(field: pa.Field) -> bool:
    """The column holds JSON text for values of mixed or nested type."""
    return bool(field.metadata) and field.metadata.get(b"raydecode") == b"json"


def infer_json(rows: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """The schema of sampled JSON objects, columns in order of first appearance. Without EXTRA."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.items():
            kinds.setdefault(key, set()).update(_kind(value))
    return pa.schema([_field(name, seen) for name, seen in kinds.items()])


def plain(schema: pa.Schema) -> pa.Schema:
    """A Parquet schema as the corpus uses it: dictionaries decoded, reserved names prefixed with `input_`, a name that
    comes again marked by `_`."""
    fields: dict[str, pa.Field] = {}
    for one in schema:
        kind = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
        name = free_name(one.name)
        while name in fields:
            name += "_"
        fields[name] = pa.field(name, kind)
    return pa.schema(list(fields.values()))


def free_name(name: str) -> str:
    """A column's name outside the reserved ones: `_id` becomes `input__id`. Injective: `input__id` moves on, too."""
    return f"input_{name}" if name.startswith(("_", "input_")) and _bare(name) in RESERVED else name


def free_names(row: dict[str, Any]) -> dict[str, Any]:
    """A parsed row with the names that its columns have."""
    if any(key.startswith(("_", "input_")) for key in row):
        return {free_name(key): value for key, value in row.items()}
    return row


def _bare(name: str) -> str:
    while name.startswith("input_"):
        name = name[len("input_") :]
    return name


def unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for all files. A name that is JSON in one file is JSON in all. Raises pa.ArrowTypeError."""
    json_names = {one.name for _, schema in schemas for one in schema if is_json(one)}
    merged: pa.Schema | None = None
    for path, schema in schemas:
        mine = pa.schema([pa.field(f.name, pa.string(), metadata=JSON) if f.name in json_names else f for f in schema])
        try:
            merged = mine if merged is None else pa.unify_schemas([merged, mine], promote_options="permissive")
        except pa.ArrowException as error:
            raise pa.ArrowTypeError(f"{path}: {error}") from None
    return merged if merged is not None else pa.schema([])


def to_columns(rows: Sequence[Mapping[str, Any] | None], schema: pa.Schema) -> list[pa.Array]:
    """JSON objects as arrays of `schema`. None (a bad line) is a row of nulls."""
    extras: list[dict[str, Any]] = [{} for _ in rows]
    names = set(schema.names)
    for row, extra in zip(rows if EXTRA in names else (), extras, strict=False):
        if row is not None and not row.keys() <= names:
            extra.update((k, v) for k, v in row.items() if k not in names and v is not None)
    out: list[pa.Array | None] = []
    for one in schema:
        if one.name == EXTRA:
            out.append(None)
            continue
        values = [None if row is None else row.get(one.name) for row in rows]
        out.append(_json_column(values) if is_json(one) else _typed_column(one, values, extras))
    texts = [json.dumps(extra) if extra else None for extra in extras]
    return [pa.array(texts, pa.string()) if one is None else one for one in out]


def row_values(row: dict[str, Any], json_columns: Sequence[str]) -> dict[str, Any]:
    """A row as its file had it: JSON columns parsed, `_extra` merged back. Changes and returns `row`."""
    for name in json_columns:
        if row.get(name) is not None:
            row[name] = json.loads(row[name])
    extra = row.pop(EXTRA, None)
    if extra:
        row.update(json.loads(extra))
    return row


def _kind(value: Any) -> set[str]:
    match value:
        case None:
            return set()
        case bool():
            return {"bool"}
        case int():
            return {"int"} if value in _INT64 else {"json"}
        case float():
            return {"float"}
        case str():
            return {"string"}
    return {"json"}


def _field(name: str, kinds: set[str]) -> pa.Field:
    match sorted(kinds):
        case ["bool"]:
            return pa.field(name, pa.bool_())
        case ["int"]:
            return pa.field(name, pa.int64())
        case ["float"] | ["float", "int"]:
            return pa.field(name, pa.float64())
        case ["string"]:
            return pa.field(name, pa.string())
        case []:
            return pa.field(name, pa.string(), metadata=JSON)  # only nulls seen: anything may come
    return pa.field(name, pa.string(), metadata=JSON)


def _json_column(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if v is None else _json_text(v) for v in values], pa.string())


def _json_text(value: Any) -> str:
    text = _readable(value)
    return text if _is_text(text) else json.dumps(value)  # a lone surrogate: only the escaped form can be stored


def _typed_column(field: pa.Field, values: list[Any], extras: Sequence[dict[str, Any]]) -> pa.Array:
    fits = _FITS.get(field.type)
    if fits is not None:
        for i, value in enumerate(values):
            if value is not None and not fits(value):
                extras[i][field.name], values[i] = value, None
        return pa.array(values, field.type)
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    for i, value in enumerate(values):
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            extras[i][field.name], values[i] = value, None
    return pa.array(values, field.type)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= 1 << 53)


_FITS = {
    pa.bool_(): lambda v: isinstance(v, bool),
    pa.int64(): lambda v: isinstance(v, int) and not isinstance(v, bool) and v in _INT64,
    pa.float64(): _is_number,
    pa.string(): _is_text,
}
