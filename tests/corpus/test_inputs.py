"""Reading: every format, every sharding, and what hostile files become."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pathlib
import pickle
import random
import tempfile
from itertools import pairwise

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from raydecode.corpus import ids, reading
from raydecode.corpus.discover import discover
from raydecode.corpus.inputs import (
    group_reads,
    index_occurrences,
    needs_index,
    needs_staging,
    open_corpus,
    plan_units,
    read_unit,
    read_units,
    stage,
)
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.lines import lines_in
from raydecode.corpus.rows import block_errors, block_rows, block_spans
from raydecode.errors import UserError


def corpus_of(path, tmp_path, **options):
    root = str(tmp_path / "out")
    files = [stage(f, root) if needs_staging(f) else f for f in discover(str(path))]
    corpus = open_corpus(files, root=root, **options)
    for file in corpus.files:
        if needs_index(corpus, file.number):
            index_occurrences(corpus, file.number)
    return corpus


def read_all(corpus, max_actors=2, block_rows_=7):
    """Every block of the corpus, in units that partition it; checks that spans lie in their units, disjoint."""
    out = []
    units = plan_units(corpus, Cover(), max_actors=max_actors, block_rows=block_rows_)
    assert Cover(units) == Cover([f.span for f in corpus.files])
    for group in group_reads(corpus, units):
        for unit, block in read_units(corpus, group):
            assert block.schema.equals(corpus.block_schema())
            seen = Cover()
            for span in block_spans(block):
                assert Cover([unit]).covers(span)
                assert not seen.overlaps(span)
                seen.add(span)
            out.append(block)
    return pa.concat_tables(out)


def rows_of(table):
    return list(block_rows(table))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl(tmp_path):
    rows = [{"q": f"question {i}", "n": i, "x": i / 2, "ok": i % 2 == 0, "deep": {"a": [i, "b"]}} for i in range(50)]
    table = read_all(corpus_of(write_lines(tmp_path / "a.jsonl", rows), tmp_path))
    assert rows_of(table) == rows
    assert block_errors(table) == [None] * 50
    assert [str(t) for t in table.schema.types[5:10]] == ["string", "int64", "double", "bool", "string"]


def test_parquet_with_many_row_groups(tmp_path):
    rows = pa.table({"q": [f"q{i}" for i in range(100)], "l": [[i, i + 1] for i in range(100)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=9)
    table = read_all(corpus_of(tmp_path / "a.parquet", tmp_path))
    assert table["_key"].to_pylist() == list(range(100))
    assert rows_of(table) == rows.to_pylist()


def test_parquet_unit_reads_only_what_it_needs(tmp_path):
    pq.write_table(pa.table({"q": [f"q{i}" for i in range(5000)]}), tmp_path / "a.parquet", row_group_size=1000)
    corpus = corpus_of(tmp_path / "a.parquet", tmp_path)
    assert [r["q"] for r in rows_of(read_unit(corpus, Span(0, 1995, 2005)))] == [f"q{i}" for i in range(1995, 2005)]
    assert read_unit(corpus, Span(0, 4999, 5000)).num_rows == 1


def test_csv_with_quoted_newlines_and_leading_zeros(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n007,"one\ntwo, three"\n008,"say ""hi"""\n')
    corpus = corpus_of(tmp_path / "a.csv", tmp_path, id="id")
    table = read_all(corpus)
    assert rows_of(table) == [{"id": "007", "text": "one\ntwo, three"}, {"id": "008", "text": 'say "hi"'}]
    assert table["_id"].to_pylist() == ["007", "008"]


def test_csv_hostile(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b,a\n1,2,3\n1,2\n\xff,2,3\n4,5,6\n1,2,3,4\n")
    table = read_all(corpus_of(tmp_path / "a.csv", tmp_path))
    kinds = [e and (e.stage, e.type) for e in block_errors(table)]
    assert kinds == [None, ("read", "InvalidCSV"), ("read", "InvalidUTF8"), None, ("read", "InvalidCSV")]
    assert rows_of(table)[3] == {"a": "4", "b": "5", "a_": "6"}


def test_text_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo\nlast without newline")
    table = read_all(corpus_of(tmp_path / "a.txt", tmp_path))
    assert [r["text"] for r in rows_of(table)] == ["one", "two", "last without newline"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_jsonl_is_the_same_corpus(tmp_path, suffix, pack):
    rows = [{"q": f"question {i % 7}", "n": i % 7} for i in range(40)]
    plain = write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(plain.read_bytes()))
    one = read_all(corpus_of(plain, tmp_path))
    two = read_all(corpus_of(tmp_path / f"b.jsonl{suffix}", tmp_path))
    assert rows_of(one) == rows_of(two) == rows
    assert one["_id"].to_pylist() == two["_id"].to_pylist()


def test_truncated_gz_gives_its_readable_rows_and_one_error(tmp_path):
    rows = [{"q": f"question {i} {random.Random(i).random()}"} for i in range(2000)]
    whole = gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    table = read_all(corpus_of(tmp_path / "a.jsonl.gz", tmp_path), block_rows_=100)
    errors = [e for e in block_errors(table) if e]
    assert 300 < table.num_rows < 2000
    assert "EOFError" in {e.type for e in errors}
    good = [row for row, e in zip(rows_of(table), block_errors(table), strict=True) if e is None]
    assert good == rows[: len(good)]


def test_openai_batch(tmp_path):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "b", "body": {"prompt": "say", "seed": 3, "temperature": 0, "stop": ["\n"]}},
        {"custom_id": "c", "body": {"model": "m"}},
        {"custom_id": "d", "body": {"prompt": "x", "tools": [{"type": "function"}]}},
        {
            "custom_id": "e",
            "body": {"prompt": "x", "response_format": {"type": "json_object"}, "max_completion_tokens": 9},
        },
    ]
    corpus = corpus_of(write_lines(tmp_path / "a.jsonl", lines), tmp_path)
    assert corpus.files[0].format == "openai"
    assert corpus.id == "custom_id"
    table = read_all(corpus)
    assert table["_id"].to_pylist()[:2] == ["a", "b"]
    rows, errors = rows_of(table), block_errors(table)
    assert rows[0]["messages"] == body["messages"]
    assert json.loads(rows[0]["decoding"]) == {
        "max_tokens": 5,
        "sampler": [{"name": "temperature", "value": 0.5}, {"name": "top_p", "p": 0.9}],
    }
    assert json.loads(rows[1]["decoding"]) == {"seed": 3, "stop": ["\n"], "sampler": [{"name": "greedy"}]}
    assert [e and e.type for e in errors] == [None, None, "InvalidRow", "Unsupported", None]
    assert "tools" in errors[3].message
    assert json.loads(rows[4]["decoding"])["monitors"] == [{"name": "json_schema", "schema": {"type": "object"}}]


HOSTILE = [
    (b'{"q": "fine"}', None),
    (b"{broken", "InvalidJSON"),
    (b'"a string"', "InvalidRow"),
    (b"[1, 2]", "InvalidRow"),
    (b'{"q": "\xff\xfe"}', "InvalidUTF8"),
    (b'{"q": "' + b"[" * 10 + b'"}', None),
    (b"[" * 100_000, "InvalidJSON"),
    (b'{"q": "\\ud800 lone surrogate"}', None),
    (b'{"q": 12345678901234567890123}', None),
    (b'{"q": null}', None),
    (b'{"q": {"now": "nested"}}', None),
    (b'{"q": "x", "new": [1]}', None),
    (b'{"q": NaN}', None),
    (b"\x00\x00", "InvalidJSON"),
    (b'{"q": "x"} trailing', "InvalidJSON"),
]


def test_bad_lines_are_rows_with_an_error(tmp_path):
    """The head is clean, so the schema says text; what comes later must fit, or go to `_extra`, or be an error."""
    head = b"".join(b'{"q": "head %d"}\n' % i for i in range(1001))
    (tmp_path / "a.jsonl").write_bytes(head + b"\n".join(line for line, _ in HOSTILE))
    corpus = corpus_of(tmp_path / "a.jsonl", tmp_path)
    table = read_all(corpus, block_rows_=50)
    table = table.slice(1001)
    assert [e and e.type for e in block_errors(table)] == [kind for _, kind in HOSTILE]
    rows = rows_of(table)
    assert rows[7]["q"] == "\ud800 lone surrogate"
    assert rows[8]["q"] == 12345678901234567890123
    assert rows[10]["q"] == {"now": "nested"}
    assert rows[11]["new"] == [1]
    assert len(set(table["_id"].to_pylist())) == len(HOSTILE)


RESERVED = ["_input", "_key", "_end", "_id", "_error", "_extra", "_text", "_messages", "input__id"]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_columns_that_bear_reserved_names_are_kept_under_others(tmp_path, format):
    row = {"q": "x"} | {name: f"value of {name}" for name in RESERVED}
    path = tmp_path / f"a.{format}"
    match format:
        case "jsonl":
            write_lines(path, [row])
        case "parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        case "csv":
            path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    corpus = corpus_of(path, tmp_path)
    table = read_all(corpus)
    assert rows_of(table) == [{"q": "x"} | {f"input_{name}": f"value of {name}" for name in RESERVED}]


def test_a_name_that_comes_twice_in_parquet(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["q", "q"]), tmp_path / "a.parquet")
    assert rows_of(read_all(corpus_of(tmp_path / "a.parquet", tmp_path))) == [{"q": "a", "q_": "b"}]


@pytest.mark.parametrize("id", [None, "k"])
def test_parquet_values_that_nobody_can_hold_cost_their_rows(tmp_path, id):
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 3, 4)))
    broken = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xff\xfeb"))
    date = pa.array([0, 1, 10**15], pa.timestamp("ms"))
    pq.write_table(pa.table({"k": ["1", "2", "3"], "q": broken, "d": date, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    table = read_all(corpus_of(tmp_path / "a.parquet", tmp_path, id=id))
    assert [e and (e.stage, e.type) for e in block_errors(table)] == [
        None, ("read", "InvalidUTF8"), ("read", "InvalidValue"),
    ]  # fmt: skip
    assert [(row["q"], row["n"]) for row in rows_of(table)] == [("a", 1), (None, 2), ("b", 3)]


def test_a_value_without_a_place_in_the_common_type_costs_its_row(tmp_path):
    pq.write_table(pa.table({"q": ["x", "y", "z"], "n": [1, 2**53 + 1, 3]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"q": ["w"], "n": [0.5]}), tmp_path / "b.parquet")
    table = read_all(corpus_of(tmp_path, tmp_path))
    assert [row["n"] for row in rows_of(table)] == [1.0, None, 3.0, 0.5]
    assert [e and e.type for e in block_errors(table)] == [None, "InvalidValue", None, None]


def test_a_unit_that_cannot_be_read_says_nothing_of_the_next(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [{"q": f"{i}"} for i in range(30)])
    corpus = corpus_of(path, tmp_path, id="q")
    whole = reading._line_block

    def broken(corpus, file, found):
        if any(b'"13"' in text for _, _, text in found):
            raise ValueError("this one")
        return whole(corpus, file, found)

    monkeypatch.setattr(reading, "_line_block", broken)
    units = plan_units(corpus, Cover(), block_rows=5)
    blocks = [block for _, block in read_units(corpus, units)]
    assert [any(block_errors(block)) for block in blocks].count(True) == 1
    assert sum(block.num_rows for block in blocks) > 20


def test_a_table_that_joins_with_a_new_column_is_refused(tmp_path):
    pq.write_table(pa.table({"q": ["x"]}), tmp_path / "a.parquet")
    schema = corpus_of(tmp_path / "a.parquet", tmp_path).schema
    pq.write_table(pa.table({"q": ["y"], "more": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has columns .* without: more"):
        corpus_of(tmp_path, tmp_path, schema=schema)


def test_given_ids_of_any_kind(tmp_path):
    given = [7, 1.5, True, "\u00fc\U0001f600", "\ud800", "\ud801", "", None]
    table = read_all(corpus_of(write_lines(tmp_path / "a.jsonl", [{"k": k} for k in given]), tmp_path, id="k"))
    ids = table["_id"].to_pylist()
    assert ids[:6] == ["7", "1.5", "True", "\u00fc\U0001f600", "\\ud800", "\\ud801"]
    assert [e and e.type for e in block_errors(table)] == [None] * 6 + ["MissingId"] * 2
    assert len(set(ids)) == len(given)


def test_depth_of_json_is_bounded_below_what_any_stack_can_walk(tmp_path):
    deep = ["[" * n + "]" * n for n in (200, 400)]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"q": {one}}}\n' for one in [*deep, "[" + "[1]," * 500 + "[1]]"]))
    table = read_all(corpus_of(tmp_path / "a.jsonl", tmp_path))
    assert [e and e.type for e in block_errors(table)] == [None, "InvalidJSON", None]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120).map(lambda b: b.replace(b"a", b"\n")), st.lists(st.integers(0, 120), max_size=6))
def test_every_partition_gives_the_same_lines(data, cuts):
    def lines(bounds):
        return [one for a, b in pairwise(bounds) for one in lines_in(io.BytesIO(data), a, b)]

    whole = lines([0, len(data)])
    parts = lines(sorted({0, len(data), *(c for c in cuts if c < len(data))}))
    assert [(at, text) for at, _, text in parts] == [(at, text) for at, _, text in whole]
    text = data.removeprefix(b"\xef\xbb\xbf")
    assert [t for _, _, t in whole] == [one.rstrip(b"\r") for one in text.split(b"\n") if one.strip()]


def test_a_giant_line_is_an_error_and_costs_no_memory(tmp_path, monkeypatch):
    from raydecode.corpus import lines

    monkeypatch.setattr(lines, "MAX_LINE", 1 << 16)
    monkeypatch.setattr(lines, "CHUNK", 1 << 12)
    (tmp_path / "a.jsonl").write_bytes(b'{"q": "a"}\n{"q": "' + b"x" * 300_000 + b'"}\n{"q": "b"}\n')
    table = read_all(corpus_of(tmp_path / "a.jsonl", tmp_path))
    assert [e and e.type for e in block_errors(table)] == [None, "LineTooLong", None]
    assert [r["q"] for r in rows_of(table)] == ["a", None, "b"]


def test_a_reading_task_carries_the_metadata_of_its_file_alone(tmp_path):
    """10,000 small files are 10,000 tasks: a megabyte of metadata each would be 10 GB on the way to the readers."""
    for i in range(100):
        write_lines(tmp_path / f"{i:03d}.jsonl", [{"q": f"{i}"}])
    corpus = corpus_of(tmp_path, tmp_path)
    one = corpus.only(57)
    assert len(pickle.dumps(one)) < len(pickle.dumps(corpus)) / 10
    assert read_unit(one, one.files[0].span).equals(read_unit(corpus, corpus.files[57].span))


def test_the_format_of_a_corpus(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"q": "x"}])
    assert corpus_of(tmp_path, tmp_path).format == "jsonl"
    (tmp_path / "b.txt").write_text("x\n")
    assert corpus_of(tmp_path, tmp_path).format == "auto"
    assert corpus_of(tmp_path / "b.txt", tmp_path).format == "text"


def test_unreadable_file_among_good_ones(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"q": f"{i}"} for i in range(10)])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 this is no parquet file" * 100)
    pq.write_table(pa.table({"q": ["p", "q"]}), tmp_path / "c.parquet")
    corpus = corpus_of(tmp_path, tmp_path)
    table = read_all(corpus)
    errors = [e for e in block_errors(table) if e]
    assert table.num_rows == 13
    assert len(errors) == 1
    assert "b.parquet" in errors[0].message
    assert errors[0].weight == 2800 // 256


def test_file_that_vanishes_is_one_error_row_per_unit_at_its_size(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"q": f"{i}"} for i in range(100)])
    corpus = corpus_of(path, tmp_path)
    os.remove(path)
    reading._occurrences.cache_clear()
    units = plan_units(corpus, Cover(), block_rows=25)
    blocks = [block for _, block in read_units(corpus, units)]
    errors = [e for block in blocks for e in block_errors(block)]
    assert all(e.type == "FileNotFoundError" for e in errors)
    assert sum(e.weight for e in errors) == pytest.approx(100, rel=0.2)
    assert Cover(s for block in blocks for s in block_spans(block)) == Cover([corpus.files[0].span])


def test_empty_corpus(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match="the corpus is empty"):
        corpus_of(tmp_path / "a.jsonl", tmp_path)
    with pytest.raises(UserError, match="no input file matches") as caught:
        discover(str(tmp_path / "b.jsonl"))
    assert "a.jsonl" in caught.value.nearest
    with pytest.raises(UserError, match="no input file matches"):
        discover(str(tmp_path / "*.parquet"))


def test_missing_column_names_the_nearest(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(UserError, match="no column 'qustion'") as caught:
        corpus_of(path, tmp_path, needs=["qustion"])
    assert caught.value.nearest == "question"
    with pytest.raises(UserError) as caught:
        corpus_of(path, tmp_path, id="answr")
    assert (caught.value.field, caught.value.nearest) == ("input.id", "answer")


def test_unknown_format(tmp_path):
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(UserError, match="cannot tell the format"):
        discover(str(tmp_path / "a.bin"))
    with pytest.raises(UserError) as caught:
        discover(str(tmp_path / "a.bin"), format="jsnl")
    assert caught.value.nearest == "jsonl"
    assert discover(str(tmp_path / "a.bin"), format="text")[0].format == "text"


def test_globs_folders_and_urls(tmp_path):
    for name in ("x/a.jsonl", "x/b.jsonl", "x/_hidden.jsonl", "x/.c.jsonl", "x/y/d.jsonl", "x/readme.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [{"q": name}])
    names = lambda found: [os.path.relpath(f.path, tmp_path / "x") for f in found]  # noqa: E731
    assert names(discover(str(tmp_path / "x"))) == ["a.jsonl", "b.jsonl", "y/d.jsonl"]
    assert names(discover(str(tmp_path / "x/*.jsonl"))) == ["_hidden.jsonl", "a.jsonl", "b.jsonl"]
    assert names(discover([str(tmp_path / "x/b.jsonl"), f"file://{tmp_path}/x/a.jsonl"])) == ["a.jsonl", "b.jsonl"]
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/box/a.jsonl", b'{"q": 1}\n')
    (found,) = discover("memory://box/*.jsonl")
    assert found.path == "memory:///box/a.jsonl"
    assert rows_of(read_all(open_corpus([found], root=str(tmp_path)))) == [{"q": 1}]
    memory.rm("/box", recursive=True)


def test_outputs_below_an_input_are_no_inputs(tmp_path):
    """Else a job whose output lies in its input's folder would take its own parts for new files, for ever."""
    write_lines(tmp_path / "a.jsonl", [{"q": 1}])
    part = f"part-000001-{'0' * 32}.parquet"
    for out in ("out", "other"):
        for name in ("_log/000000000000.json", f"_tmp/000001/{part}", "_input/0-0.parquet", "report.json", part):
            path = tmp_path / out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_lines(path, [{"q": name}])
    names = lambda found: [os.path.relpath(f.path, tmp_path) for f in found]  # noqa: E731
    own = str(tmp_path / "out")
    assert names(discover(str(tmp_path), output=own)) == ["a.jsonl"]
    assert names(discover(f"{tmp_path}/**/*.json*", output=own)) == ["a.jsonl"]
    assert names(discover(str(tmp_path / "other"), output=own)) == [f"other/{part}"], "a next job reads the parts"
    write_lines(tmp_path / "out/mine.jsonl", [{"q": 2}])
    assert names(discover(own, output=own)) == ["out/mine.jsonl"], "one folder for both"


def test_links_and_odd_names(tmp_path):
    real, folder = tmp_path / "real", tmp_path / "in"
    real.mkdir()
    folder.mkdir()
    write_lines(real / "a.jsonl", [{"q": 1}])
    write_lines(folder / "b[1].jsonl", [{"q": 2}])
    os.symlink(real / "a.jsonl", folder / "link.jsonl")
    os.symlink(real, folder / "folder.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    names = lambda found: [os.path.basename(f.path) for f in found]  # noqa: E731
    assert names(discover(f"{folder}/*.jsonl")) == names(discover(str(folder))) == ["b[1].jsonl", "link.jsonl"]
    assert names(discover(f"{folder}/b[1].jsonl")) == ["b[1].jsonl"]
    os.symlink(tmp_path / "nowhere", folder / "lost.jsonl")
    for pattern in (f"{folder}/*.jsonl", str(folder)):
        with pytest.raises(UserError, match=r"lost\.jsonl is a link to nothing"):
            discover(pattern)


@pytest.mark.parametrize("name", ["b.csv.gz", "b.csv"])
def test_unreadable_csv_among_good_ones(tmp_path, name):
    (tmp_path / "a.csv").write_text("q\nx\ny\n")
    (tmp_path / name).write_bytes(b"no gzip")
    files = discover([str(tmp_path / "a.csv"), str(tmp_path / name)])
    if name == "b.csv":
        os.remove(tmp_path / name)
    root = str(tmp_path / "out")
    table = read_all(open_corpus([stage(one, root) for one in files], root=root))
    assert [row["q"] for row in rows_of(table)] == ["x", "y", None]
    assert [e and e.stage for e in block_errors(table)] == [None, None, "read"]


def test_changed_inputs_are_refused_and_new_ones_join(tmp_path):
    write_lines(tmp_path / "b.jsonl", [{"q": 1}])
    known = discover(str(tmp_path / "*.jsonl"))
    write_lines(tmp_path / "a.jsonl", [{"q": 2}])
    both = discover(str(tmp_path / "*.jsonl"), known=known)
    assert [(f.number, os.path.basename(f.path)) for f in both] == [(0, "b.jsonl"), (1, "a.jsonl")]
    os.utime(tmp_path / "b.jsonl", (1, 1))  # touched, not changed
    assert discover(str(tmp_path / "*.jsonl"), known=both) == both
    write_lines(tmp_path / "b.jsonl", [{"q": 3}])  # same size
    with pytest.raises(UserError, match=r"b\.jsonl has changed"):
        discover(str(tmp_path / "*.jsonl"), known=both)
    os.remove(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="is gone"):
        discover(str(tmp_path / "*.jsonl"), known=both)
    assert discover(str(tmp_path / "*.jsonl"), known=both, done=Cover([both[0].span])) == both


def test_an_input_that_moved_keeps_its_number_and_another_content_is_no_move(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    write_lines(here / "a.jsonl", [{"q": 1}])
    write_lines(here / "b.jsonl", [{"q": 2}])
    known = discover(str(here))
    for name in ("a.jsonl", "b.jsonl"):
        (here / name).rename(there / name)
    write_lines(there / "0.jsonl", [{"q": 1}])  # a's content under another name is a new file
    now = discover(str(there), known=known)
    assert [(f.number, os.path.relpath(f.path, there)) for f in now] == [(0, "a.jsonl"), (1, "b.jsonl"), (2, "0.jsonl")]
    assert [f.stamp for f in now[:2]] == [f.stamp for f in known]
    covered = Cover([f.span for f in known])
    assert [f.number for f in discover(str(there), known=known, done=covered)] == [0, 1, 2]  # nor done twice
    write_lines(there / "b.jsonl", [{"q": 3}])
    with pytest.raises(UserError, match=r"b\.jsonl was part of this job and is gone"):
        discover(str(there), known=known)


def test_files_that_do_not_share_a_schema(tmp_path):
    pq.write_table(pa.table({"q": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"q": [[1]]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="do not share one schema") as caught:
        corpus_of(tmp_path, tmp_path)
    assert "b.parquet" in str(caught.value)


def test_column_that_is_text_here_and_nested_there(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"q": "text"}])
    write_lines(tmp_path / "b.jsonl", [{"q": ["list"]}, {"q": 5}])
    table = read_all(corpus_of(tmp_path, tmp_path))
    assert [r["q"] for r in rows_of(table)] == ["text", ["list"], 5]


def test_reserved_and_dictionary_columns(tmp_path):
    table = pa.table({"_key": [1, 2], "_input": ["a", "b"], "d": pa.array(["x", "y"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    got = read_all(corpus_of(tmp_path / "a.parquet", tmp_path))
    assert rows_of(got) == [
        {"input__key": 1, "input__input": "a", "d": "x"},
        {"input__key": 2, "input__input": "b", "d": "y"},
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resume_reads_exactly_the_rows_that_are_missing(data):
    """Any set of rows is done, however the file was cut before and is cut now: the others come, ids unchanged."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        lines = data.draw(
            st.lists(st.sampled_from(["", "  ", '{"q": 1}', '{"q": 2}', "{bad", '{"q": 12345678}']), min_size=1)
        )
        (folder / "a.jsonl").write_text("\n".join(['{"q": 0}', *lines]))
        corpus = corpus_of(folder / "a.jsonl", folder)
        first = read_all(corpus, block_rows_=data.draw(st.integers(1, 9)))
        names = dict(zip(first["_key"].to_pylist(), first["_id"].to_pylist(), strict=True))
        done = Cover(span for span in block_spans(first) if data.draw(st.booleans()))
        if data.draw(st.booleans()):  # gaps of finished units were committed, too
            gaps = Cover([corpus.files[0].span]).subtract(Cover(block_spans(first)))
            done.update(gaps)
        units = plan_units(corpus, done, block_rows=data.draw(st.integers(1, 9)))
        again: dict[int, str] = {}
        cover = done.copy()
        for unit in units:
            block = read_unit(corpus, unit)
            for span, row in zip(block_spans(block), block["_id"].to_pylist(), strict=True):
                assert not cover.overlaps(span)
                cover.add(span)
                again[span.start] = row
        assert again == {key: row for key, row in names.items() if not done.overlaps(Span(0, key, key + 1))}


# ids


def test_given_ids(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"k": 5, "q": "a"}, {"k": None, "q": "b"}, {"k": 5, "q": "c"}])
    table = read_all(corpus_of(path, tmp_path, id="k"))
    assert table["_id"].to_pylist()[0] == table["_id"].to_pylist()[2] == "5"
    assert [e and e.type for e in block_errors(table)] == [None, "MissingId", None]


def test_content_ids_do_not_depend_on_sharding_order_or_format(tmp_path, monkeypatch):
    rows = [{"q": f"question {i % 30}", "n": i % 3, "none": None} for i in range(200)]
    want = None
    for block in (3, 50, 1000):
        for small in (1 << 20, 0):  # counted on opening; by a pass of its own
            monkeypatch.setattr(ids, "SMALL", small)
            reading._occurrences.cache_clear()
            folder = tmp_path / f"{block}-{small}"
            folder.mkdir()
            table = read_all(corpus_of(write_lines(folder / "a.jsonl", rows), folder), block_rows_=block)
            got = table["_id"].to_pylist()
            assert len(set(got)) == 200
            want = want or got
            assert got == want
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    table = read_all(corpus_of(write_lines(tmp_path / "shuffled.jsonl", shuffled), tmp_path))
    by_content = {}
    for row, name in zip(rows, want, strict=True):
        by_content.setdefault(json.dumps(row), set()).add(name)
    again = {}
    for row, name in zip(shuffled, table["_id"].to_pylist(), strict=True):
        again.setdefault(json.dumps(row), set()).add(name)
    assert again == by_content
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_all(corpus_of(tmp_path / "a.parquet", tmp_path))["_id"].to_pylist() == want


def test_single_rows_read_alone_keep_their_id(tmp_path):
    """As a suspect is read: its span only."""
    path = write_lines(tmp_path / "a.jsonl", [{"q": "same"}] * 20)
    corpus = corpus_of(path, tmp_path)
    table = read_all(corpus)
    for i, span in enumerate(block_spans(table)):
        alone = read_unit(corpus, span)
        assert alone["_id"].to_pylist() == [table["_id"][i].as_py()]


def test_plan_shrinks_towards_the_end(tmp_path):
    pq.write_table(pa.table({"q": ["x"] * 300}), tmp_path / "a.parquet")
    corpus = corpus_of(tmp_path / "a.parquet", tmp_path)
    sizes = [u.size for u in plan_units(corpus, Cover(), max_actors=4)]
    assert sum(sizes) == 300
    assert sizes[0] == 300 // 32
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    done = Cover([Span(0, 0, 100), Span(0, 150, 299)])
    assert Cover(plan_units(corpus, done)) == Cover([Span(0, 100, 150), Span(0, 299, 300)])


@pytest.mark.parametrize("repeats", [False, True], ids=["plain", "repeated"])
def test_large_rows_make_small_units_and_lots(tmp_path, repeats):
    """Bytes bound what one task reads: 600 rows of 64 KiB are five units, not one. Of texts that repeat, the footer
    tells a thousandth of the bytes."""
    rows = [f"{0 if repeats else i:08d}" * 8192 for i in range(600)]
    pq.write_table(pa.table({"k": [str(i) for i in range(600)], "q": rows}), tmp_path / "a.parquet", row_group_size=500)
    corpus = corpus_of(tmp_path / "a.parquet", tmp_path, id="k")
    units = plan_units(corpus, Cover(), block_rows=1024)
    assert max(unit.size for unit in units) <= 128
    lots = group_reads(corpus, units)
    sizes = [sum(block.nbytes for _, block in read_units(corpus, lot)) for lot in lots]
    assert max(sizes) < 9 << 20
    assert len(lots) < 10
    assert Cover(unit for lot in lots for unit in lot) == Cover([corpus.files[0].span])


def test_short_lines_are_bounded_by_their_number(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 30_000)
    corpus = corpus_of(tmp_path / "a.txt", tmp_path)
    lots = group_reads(corpus, plan_units(corpus, Cover()))
    assert max(sum(corpus.rows_in(unit) for unit in lot) for lot in lots) <= 8192


def test_a_huge_row_group_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "GROUP_BYTES", 1 << 10)
    pq.write_table(pa.table({"q": [f"text {i}" for i in range(3000)]}), tmp_path / "a.parquet")
    corpus = corpus_of(tmp_path / "a.parquet", tmp_path)
    assert [row["q"] for row in block_rows(read_all(corpus, 2, 700))] == [f"text {i}" for i in range(3000)]


def test_covered_files_are_not_opened(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [{"q": 1}])
    corpus = corpus_of(path, tmp_path)
    done = Cover([corpus.files[0].span])
    opened = []
    for name in ("open", "cat_file"):
        real = getattr(LocalFileSystem, name)

        def noted(self, file, *arguments, real=real, **named):
            opened.append(file)
            return real(self, file, *arguments, **named)

        monkeypatch.setattr(LocalFileSystem, name, noted)
    assert tuple(discover(str(path), known=corpus.files, done=done)) == corpus.files
    assert plan_units(corpus, done) == []
    assert opened == []
    os.utime(path, (1, 1))
    assert tuple(discover(str(path), known=corpus.files, done=done)) == corpus.files
    assert opened, "another mtime: the content decides"


def test_staging_is_made_once_and_whole(tmp_path):
    (tmp_path / "a.csv").write_text("q\nx\n")
    root = str(tmp_path / "out")
    (file,) = discover(str(tmp_path / "a.csv"))
    one = stage(file, root)
    before = os.stat(f"{root}/{one.staged}").st_mtime_ns
    assert stage(file, root) == one
    assert os.stat(f"{root}/{one.staged}").st_mtime_ns == before
    assert os.listdir(f"{root}/_input") == [os.path.basename(one.staged)]
    os.remove(f"{root}/{one.staged}")
    assert stage(one, root) == one
    assert os.path.exists(f"{root}/{one.staged}"), "a copy that somebody removed is made again"
    os.remove(f"{root}/{one.staged}")
    os.remove(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("q\nx\ny\n")
    with pytest.raises(UserError, match="had 1 rows"):
        stage(one, root)
