"""Contract with Ray Data's internals: one reference per unit, the right unit with it, a bounded read-ahead."""

import time
from functools import partial

import pyarrow as pa
import pytest

from pipelines import blocks
from raydecode.corpus.intervals import Span

MANY = 1 << 40
LOTS = [[Span(i, 100 * j, 100 * j + 7) for j in range(5)] for i in range(4)]


def table(unit: Span) -> pa.Table:
    keys = range(unit.start, unit.stop)
    return pa.table({"_input": pa.array([unit.input] * len(keys), pa.int32()), "_key": pa.array(keys, pa.int64())})


def read(lot):
    for unit in lot:
        yield unit, table(unit)


def prepare(table: pa.Table) -> pa.Table:
    return table.append_column("_text", pa.array([f"row {k}" for k in table["_key"].to_pylist()], pa.string()))


def test_label_survives_and_is_optional():
    assert blocks.lot_of(blocks.label(table(LOTS[0][3]), 12).schema) == 12
    assert blocks.lot_of(table(LOTS[0][3]).schema) is None


def test_every_lot_comes_once_with_its_own_rows(ray_session):
    import ray

    seen = {}
    for one in blocks.stream(LOTS, [partial(read, lot) for lot in LOTS], prepare, ahead=6, ahead_bytes=MANY):
        block = ray.get(one.ref)
        keys = block["_key"].to_pylist()
        assert block["_text"].to_pylist() == [f"row {k}" for k in keys]
        assert one.size_bytes == pytest.approx(block.nbytes, rel=0.5)
        assert tuple(one.units) not in seen
        seen[tuple(one.units)] = keys
    assert seen == {tuple(lot): [k for unit in lot for k in range(unit.start, unit.stop)] for lot in LOTS}


def test_readers_stop_when_nobody_pulls(ray_session, tmp_path):
    lots = [[Span(0, 2 * i, 2 * i + 1), Span(0, 2 * i + 1, 2 * i + 2)] for i in range(60)]

    def counted(lot):
        for unit in lot:
            (tmp_path / str(unit.start)).touch()
            yield unit, table(unit)

    stream = blocks.stream(lots, [partial(counted, lot) for lot in lots], prepare, ahead=6, ahead_bytes=MANY)
    first = next(stream)
    before = -1
    while len(list(tmp_path.iterdir())) != before:  # until the readers stand still
        before = len(list(tmp_path.iterdir()))
        time.sleep(1)
    assert before <= 2 * (6 + 4), "the queue, and what the consumer's side holds"
    assert sorted(one.units for one in [first, *stream]) == lots


def test_a_failing_task_raises_and_does_not_hang(ray_session):
    def broken(lot):
        raise OSError("disk gone")

    with pytest.raises(Exception, match="disk gone"):
        list(blocks.stream(LOTS, [partial(broken, lot) for lot in LOTS], prepare, ahead=6, ahead_bytes=MANY))


def test_no_units_no_ray():
    assert list(blocks.stream([], [], prepare, ahead=6, ahead_bytes=MANY)) == []


def test_readers_stop_at_bytes_before_they_stop_at_blocks(ray_session, tmp_path):
    """Blocks of 4 MiB, 24 MiB ahead: six or so are read, of the 60 that their number alone would allow."""
    lots = [[Span(0, i, i + 1)] for i in range(60)]

    def large(lot):
        (tmp_path / str(lot[0].start)).touch()
        yield lot[0], table(lot[0]).append_column("text", pa.array(["x" * (4 << 20)]))

    stream = blocks.stream(lots, [partial(large, lot) for lot in lots], prepare, ahead=60, ahead_bytes=24 << 20)
    first = next(stream)
    assert first.size_bytes > 4 << 20
    before = -1
    while len(list(tmp_path.iterdir())) != before:
        before = len(list(tmp_path.iterdir()))
        time.sleep(1)
    assert before <= 6 + 4, "what the bytes allow, and what the consumer's side holds"
    assert sorted(one.units for one in [first, *stream]) == lots


def test_a_lot_larger_than_foreseen_is_cut(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_BYTES", 100)
    kept = list(blocks._bounded((unit, table(unit)) for unit in LOTS[0]))
    assert [one.num_rows for one in kept] == [7, 7], "84 bytes a unit: the second one makes it full"
