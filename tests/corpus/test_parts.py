"""From blocks through a worker's buffer to parts, the log and `verify`."""

from __future__ import annotations

import importlib
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydecode.corpus.discover import discover
from raydecode.corpus.history import finished
from raydecode.corpus.inputs import open_corpus, plan_units, read_unit
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.messages import Committed, Lease, Stop, Suspects
from raydecode.corpus.parts import PartBuilder
from raydecode.corpus.records import schema_from_text, schema_to_text
from raydecode.corpus.rows import OutputSchema, RowFault, Sample, block_spans
from raydecode.corpus.storage import LocalStorage
from raydecode.corpus.verify import verify
from raydecode.errors import UserError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def job(tmp_path, lines=None, samples=1, id=None):
    """A whole job without an engine: ledger, one worker, parts, log. Returns the storage."""
    path = tmp_path / "in.jsonl"
    if lines is None:
        lines = [json.dumps({"q": f"q{i % 40}", "text": "t"}).encode() for i in range(100)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    storage = LocalStorage(str(tmp_path / "out"))
    files = discover(str(path))
    corpus = open_corpus(files, root=storage.url, id=id)
    log = Log.open(
        storage, job={"m": 1}, inputs=files, schema=schema_to_text(corpus.schema), now=lambda: 0.0, takeover=True
    )
    planned = plan_units(corpus, log.state.done, block_rows=9)
    clock = Clock()
    ledger = Ledger(log, planned, clock)
    builder = PartBuilder(
        storage, log.attempt, OutputSchema(corpus.schema, ["text", "output_tokens"], id), clock, flush_s=5
    )
    feed, ticket = list(planned), 0
    while True:
        while ledger.hungry() and feed:
            ledger.offer(None, feed.pop(0))
        if not feed:
            ledger.end_of_input()
        ticket += 1
        clock.now += 1
        lease = ledger.next("w", ticket)
        if isinstance(lease, Lease):
            table = builder.lease(lease, read_unit(corpus, lease.unit))
            for i, span in enumerate(block_spans(table)):
                many = [Sample({"text": f"{table['q'][i]} {s}", "output_tokens": 3}, sample=s) for s in range(samples)]
                builder.add(span, many)
        if builder.full() or (not isinstance(lease, Lease) and builder.buffered()):
            assert ledger.commit("w", [builder.flush()]) == Committed()
        if isinstance(lease, Stop):
            assert lease.reason == "finished"
            return storage


def test_whole_job(tmp_path):
    storage = job(tmp_path)
    assert finished(storage).rows == 100
    table = pa.concat_tables([pq.read_table(f"{storage.url}/{p}") for p in storage.list("") if "/" not in p])
    assert table.num_rows == 100
    assert len(set(table["id"].to_pylist())) == 100
    assert all(text.startswith(q) for q, text in zip(table["q"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert set(table["input_text"].to_pylist()) == {"t"}
    result = verify(storage)
    assert result.ok
    assert not result.findings
    assert (result.rows, result.samples, result.duplicate_ids, result.missing, result.finished) == (
        100,
        100,
        0,
        0,
        True,
    )
    assert result.parts < 20
    assert job(tmp_path).list("") is not None  # again: nothing to do, no new part
    assert verify(storage).parts == result.parts


def test_several_samples_are_one_key(tmp_path):
    result = verify(job(tmp_path, samples=3))
    assert (result.ok, result.rows, result.samples) == (True, 100, 300)


def test_blank_lines_and_bad_lines(tmp_path):
    lines = [b"", b'{"q": "a"}', b"", b"   ", b"{bad", b'{"q": "b"}', b"", b"", b""]
    result = verify(job(tmp_path, lines))
    assert (result.ok, result.rows, result.errors, result.missing) == (True, 3, 1, 0)


def test_duplicate_given_ids_keep_both_rows_and_are_reported(tmp_path):
    lines = [json.dumps({"k": k, "q": "x"}).encode() for k in ("a", "b", "a", "a")]
    result = verify(job(tmp_path, lines, id="k"))
    assert (result.ok, result.rows, result.duplicate_ids) == (True, 4, 2)
    assert [f.severity for f in result.findings] == ["note"]


def first_part(storage):
    return min(p for p in storage.list("") if p.startswith("part-"))


def damaged(tmp_path):
    storage = job(tmp_path)
    return storage, f"{storage.url}/{first_part(storage)}"


def what(storage):
    result = verify(storage)
    assert not result.ok
    return "; ".join(f"{f.what} ({f.where})" for f in result.findings if f.severity == "error")


def test_verify_finds_a_flipped_byte(tmp_path):
    storage, path = damaged(tmp_path)
    with open(path, "r+b") as file:
        file.seek(50)
        file.write(b"\x00\xff\x00")
    assert "bytes differ" in what(storage)


def test_verify_finds_a_missing_part(tmp_path):
    storage, path = damaged(tmp_path)
    os.remove(path)
    assert "committed part is not there (gone)" in what(storage)


def test_verify_finds_a_foreign_part(tmp_path):
    storage, path = damaged(tmp_path)
    shutil.copy(path, f"{storage.url}/part-copy.parquet")
    assert "the log does not name" in what(storage)


def test_verify_finds_missing_and_wrong_ids(tmp_path):
    storage, _ = damaged(tmp_path)
    name = f"_ids/{first_part(storage).removesuffix('.parquet')}.ids"
    storage.write(name, b"12345678")
    assert "ids differ" in what(storage)
    storage.remove(name)
    assert "side file of ids is not there" in what(storage)


def test_verify_of_no_output(tmp_path):
    with pytest.raises(UserError, match="no raydecode output here"):
        verify(LocalStorage(str(tmp_path)))


def test_verify_reports_changed_inputs(tmp_path):
    storage = job(tmp_path)
    (tmp_path / "in.jsonl").write_text("{}")
    result = verify(storage)
    assert result.ok
    assert "has changed" in result.findings[0].what


def test_duplicates_are_counted_over_many_runs(tmp_path, monkeypatch):
    """More side files than are merged at once, chunks smaller than a file."""
    verify_module = importlib.import_module("raydecode.corpus.verify")
    monkeypatch.setattr(verify_module, "_FAN_IN", 3)
    monkeypatch.setattr(verify_module, "_CHUNK", 4)
    lines = [json.dumps({"k": k % 61, "q": "x"}).encode() for k in range(100)]
    assert verify(job(tmp_path, lines, id="k")).duplicate_ids == 39


def builder_of(tmp_path, **options):
    storage = LocalStorage(str(tmp_path))
    clock = Clock()
    schema = OutputSchema(pa.schema([("q", pa.string())]), ["text"])
    return PartBuilder(storage, 1, schema, clock, **options), storage, clock


def block(tmp_path, n=4):
    (tmp_path / "b.jsonl").write_text("".join(f'{{"q": "{i}"}}\n' for i in range(n)))
    corpus = open_corpus(discover(str(tmp_path / "b.jsonl")), root=str(tmp_path))
    table = read_unit(corpus, corpus.files[0].span)
    return table.select([c for c in table.column_names if c != "_extra"])


def test_builder_takes_only_the_lease_and_covers_gaps(tmp_path):
    builder, _, _ = builder_of(tmp_path)
    table = block(tmp_path)
    spans = block_spans(table)
    todo = (spans[0], Span(0, spans[2].start, spans[3].stop))
    kept = builder.lease(Lease(1, Span(0, 0, 44), None, todo), table)
    assert block_spans(kept) == [spans[0], spans[2], spans[3]]
    for span in (spans[0], spans[2]):
        builder.add(span, [Sample({"text": "x"})])
    builder.drop([spans[3]])
    meta = builder.flush()
    assert meta.cover == Cover([spans[0], spans[2]])
    assert meta.rows == 2
    assert builder.flush() is None


def test_builder_flushes_by_age_and_size(tmp_path):
    builder, _, clock = builder_of(tmp_path, flush_s=60, flush_bytes=500)
    table = block(tmp_path)
    spans = block_spans(table)
    builder.lease(Suspects(1, tuple(spans), False, 1), table)
    assert not builder.full()
    builder.add(spans[0], [Sample({"text": "x"})])
    assert builder.buffered()
    assert not builder.full()
    clock.now = 61
    assert builder.full()
    builder.flush()
    builder.add(spans[1], [Sample({"text": "x" * 600})])
    assert builder.full()


def test_verdict_writes_error_rows_without_running(tmp_path):
    builder, storage, _ = builder_of(tmp_path)
    table = block(tmp_path, 1)
    (span,) = block_spans(table)
    kept = builder.lease(Lease(1, span, None, (span,), RowFault("engine", "EngineDeath", "it died", 4)), table)
    assert kept.num_rows == 0
    meta = builder.flush()
    assert (meta.errors, meta.rows) == (1, 1)
    (path,) = [p for p in storage.list("_tmp") if p.endswith(".parquet")]
    assert pq.read_table(f"{storage.url}/{path}")["error"][0].as_py()["tries"] == 4


def test_a_part_of_a_superseded_attempt_is_fenced(tmp_path):
    builder, storage, _ = builder_of(tmp_path)
    table = block(tmp_path, 1)
    (span,) = block_spans(table)
    builder.lease(Suspects(1, (span,), False, 1), table)
    builder.add(span, [Sample()])

    def vanish(path, data):
        raise FileNotFoundError(path)

    storage.write = vanish
    with pytest.raises(Fenced, match="another run took over"):
        builder.flush()


def test_schema_travels_as_text():
    schema = pa.schema(
        [pa.field("q", pa.string(), metadata={b"raydecode": b"json"}), pa.field("l", pa.list_(pa.int64()))]
    )
    again = schema_from_text(schema_to_text(schema))
    assert again.equals(schema, check_metadata=True)
