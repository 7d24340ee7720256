"""The output's schema, row specs, faults."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from raydecode.corpus.intervals import Span
from raydecode.corpus.rows import (
    BLOCK_ERROR,
    BLOCK_FIELDS,
    ERROR,
    Finished,
    OutputSchema,
    RowFault,
    Sample,
    block_errors,
    row_spec,
    with_faults,
)
from raydecode.corpus.schema import JSON, is_json
from raydecode.errors import RowError, UserError

INPUTS = pa.schema([("q", pa.string()), ("text", pa.string()), ("n", pa.int64())])


def block(n=3):
    head = {
        "_input": pa.array([0] * n, pa.int32()),
        "_key": pa.array(range(n), pa.int64()),
        "_end": pa.array(range(1, n + 1), pa.int64()),
        "_id": [f"id{i}" for i in range(n)],
        "_error": pa.array([None] * n, BLOCK_ERROR),
    }
    body = {"q": [f"q{i}" for i in range(n)], "text": [f"t{i}" for i in range(n)], "n": list(range(n))}
    return pa.table({**head, **body}, schema=pa.schema([*BLOCK_FIELDS, *INPUTS]))


def done(block_, i, *samples):
    return Finished(Span(0, i, i + 1), block_, i, samples)


def test_columns_and_collisions():
    out = OutputSchema(INPUTS, ["text", "tokens", "finish_reason"])
    assert out.schema.names == [
        "id",
        "sample",
        "q",
        "input_text",
        "n",
        "text",
        "tokens",
        "finish_reason",
        "error",
        "_input",
        "_key",
    ]
    assert out.renamed == {"text": "input_text"}
    both = OutputSchema(pa.schema([("text", pa.string()), ("input_text", pa.string())]), ["text"])
    assert both.renamed == {"text": "input_input_text"}
    assert OutputSchema(pa.schema([("id", pa.int64())]), [], id="id").schema.names == [
        "id",
        "sample",
        "error",
        "_input",
        "_key",
    ]
    assert OutputSchema(pa.schema([("id", pa.int64())]), []).renamed == {"id": "input_id"}


def test_nested_values_are_still_known_as_such_in_the_output():
    out = OutputSchema(pa.schema([pa.field("deep", pa.string(), metadata=JSON), pa.field("n", pa.int8())]), [])
    assert [one.name for one in out.schema if is_json(one)] == ["deep"]


def test_unknown_output_column_names_the_nearest():
    with pytest.raises(UserError) as caught:
        OutputSchema(INPUTS, ["text", "finish_reson"])
    assert (caught.value.field, caught.value.nearest) == ("output.columns[1]", "finish_reason")
    assert OutputSchema(INPUTS, ["mine"], extra={"mine": pa.int8()}).types == {"mine": pa.int8()}


def test_rows_of_several_blocks_in_order_with_samples():
    a, b = block(), block()
    out = OutputSchema(INPUTS, ["text", "tokens"])
    fault = RowFault("engine", "EngineDeath", "boom", 3)
    rows = [
        done(b, 2, Sample({"text": "x", "tokens": [1, 2], "other": 1}), Sample({"text": "y"}, sample=1)),
        done(a, 0, Sample(error=fault)),
        done(b, 1, Sample({"text": "z"})),
    ]
    table = out.table(rows)
    assert table.schema.equals(out.schema)
    assert table["id"].to_pylist() == ["id2", "id2", "id0", "id1"]
    assert table["sample"].to_pylist() == [0, 1, 0, 0]
    assert table["q"].to_pylist() == ["q2", "q2", "q0", "q1"]
    assert table["input_text"].to_pylist() == ["t2", "t2", "t0", "t1"]
    assert table["text"].to_pylist() == ["x", "y", None, "z"]
    assert table["tokens"].to_pylist() == [[1, 2], None, None, None]
    assert table["error"].to_pylist() == [
        None,
        None,
        {"stage": "engine", "type": "EngineDeath", "message": "boom", "tries": 3},
        None,
    ]
    assert table["_key"].to_pylist() == [2, 2, 0, 1]
    assert out.table([]).schema.equals(out.schema)


def test_wrong_type_of_one_row_costs_that_row():
    out = OutputSchema(INPUTS, ["tokens", "text"])
    one = block()
    table = out.table(
        [done(one, 0, Sample({"tokens": "no list"})), done(one, 1, Sample({"tokens": [1], "text": "\ud800"}))]
    )
    assert table["error"][0].as_py()["type"] == "WrongType"
    assert table["error"][1].as_py() is None
    assert table["tokens"].to_pylist() == [None, [1]]
    assert table["text"].to_pylist()[1] == "?"


def test_faults_of_a_block():
    one = with_faults(block(), {1: RowFault("template", "UndefinedError", "x", weight=1)})
    one = with_faults(one, {1: RowFault("read", "Late", "y"), 2: RowFault("read", "Other", "\udcff")})
    errors = block_errors(one)
    assert errors[0] is None
    assert errors[1].type == "UndefinedError"  # the first one stays
    assert errors[2].message == "?"
    assert with_faults(one, {}) is one


def test_any_exception_becomes_a_record():
    assert RowFault.of(RowError("read", "InvalidJSON", "m"), "engine") == RowFault("read", "InvalidJSON", "m")
    assert RowFault.of(KeyError("k"), "method", 2) == RowFault("method", "KeyError", "'k'", 2)
    assert len(RowFault.of(ValueError("x" * 10**6), "method").message) == 2000
    assert pa.array([RowFault("a", "b", "c").record()], ERROR)[0].as_py()["tries"] == 1


def test_row_specs():
    assert row_spec('{"max_tokens": 5, "search": null}') == {"max_tokens": 5, "search": None}  # null in JSON is meant
    assert row_spec({"max_tokens": 5, "search": None, "sampler": [{"name": "x", "p": None}]}) == {
        "max_tokens": 5,
        "sampler": [{"name": "x"}],
    }  # null in a struct is a hole
    assert row_spec([("max_tokens", 5)]) == {"max_tokens": 5}
    assert row_spec(json.dumps('{"max_tokens": 5}')) == {"max_tokens": 5}  # text in a column of texts and objects
    for nothing in (None, "", "  ", "null", "{}", {}, {"a": None}, b""):
        assert row_spec(nothing) is None
    for bad in ("{", "[1]", "5", '"x"', 5, [1], "[" * 100_000):
        with pytest.raises(RowError) as caught:
            row_spec(bad)
        assert caught.value.stage == "decoding"
