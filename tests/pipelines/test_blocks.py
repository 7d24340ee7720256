"""Contract with Ray Data's internals: one reference per unit, the right unit with it, a bounded read-ahead."""

import time
from functools import partial

import pyarrow as pa
import pytest

from pipelines import blocks
from raydecode.corpus.intervals import Span

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
    for ref, units in blocks.stream(LOTS, [partial(read, lot) for lot in LOTS], prepare, ahead=6):
        block = ray.get(ref)
        keys = block["_key"].to_pylist()
        assert block["_text"].to_pylist() == [f"row {k}" for k in keys]
        assert tuple(units) not in seen
        seen[tuple(units)] = keys
    assert seen == {tuple(lot): [k for unit in lot for k in range(unit.start, unit.stop)] for lot in LOTS}


def test_readers_stop_when_nobody_pulls(ray_session, tmp_path):
    lots = [[Span(0, 2 * i, 2 * i + 1), Span(0, 2 * i + 1, 2 * i + 2)] for i in range(150)]

    def counted(lot):
        for unit in lot:
            (tmp_path / str(unit.start)).touch()
            yield unit, table(unit)

    stream = blocks.stream(lots, [partial(counted, lot) for lot in lots], prepare, ahead=6)
    first = next(stream)
    before = -1
    while len(list(tmp_path.iterdir())) != before:  # until the readers stand still
        before = len(list(tmp_path.iterdir()))
        time.sleep(2)
    assert before <= 2 * (6 + 4), "the queue, and what the consumer's side holds"
    assert sorted([first[1], *(units for _, units in stream)]) == lots


def test_a_failing_task_raises_and_does_not_hang(ray_session):
    def broken(lot):
        raise OSError("disk gone")

    with pytest.raises(Exception, match="disk gone"):
        list(blocks.stream(LOTS, [partial(broken, lot) for lot in LOTS], prepare, ahead=6))


def test_no_units_no_ray():
    assert list(blocks.stream([], [], prepare, ahead=6)) == []
