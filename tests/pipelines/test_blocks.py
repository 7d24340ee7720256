"""Contract with Ray Data's internals: one reference per unit, the right unit with it, a bounded read-ahead."""

import time

import pyarrow as pa

from pipelines import blocks
from raydecode.corpus.intervals import Span

UNITS = [Span(i % 3, 100 * i, 100 * i + 7) for i in range(40)]


def read(unit: Span) -> pa.Table:
    keys = range(unit.start, unit.stop)
    return pa.table({"_input": pa.array([unit.input] * len(keys), pa.int32()), "_key": pa.array(keys, pa.int64())})


def prepare(table: pa.Table) -> pa.Table:
    return table.append_column("_text", pa.array([f"row {k}" for k in table["_key"].to_pylist()], pa.string()))


def test_label_survives_and_is_optional():
    assert blocks.unit_of(blocks.label(read(UNITS[3]), UNITS[3]).schema) == UNITS[3]
    assert blocks.unit_of(read(UNITS[3]).schema) is None


def test_every_unit_comes_once_with_its_own_rows(ray_session):
    import ray

    seen = {}
    for ref, unit in blocks.stream(UNITS, read, prepare, ahead=6):
        assert unit not in seen
        table = ray.get(ref)
        seen[unit] = table["_key"].to_pylist()
        assert blocks.unit_of(table.schema) == unit
        assert table["_text"].to_pylist() == [f"row {k}" for k in seen[unit]]
    assert seen == {unit: list(range(unit.start, unit.stop)) for unit in UNITS}


def test_readers_stop_when_nobody_pulls(ray_session, tmp_path):
    units = [Span(0, i, i + 1) for i in range(300)]

    def counted(unit: Span) -> pa.Table:
        (tmp_path / str(unit.start)).touch()
        return read(unit)

    stream = blocks.stream(units, counted, prepare, ahead=6)
    first = next(stream)
    before = -1
    while len(list(tmp_path.iterdir())) != before:  # until the readers stand still
        before = len(list(tmp_path.iterdir()))
        time.sleep(2)
    assert before <= 6 + 4, "the queue, and what the consumer's side holds"
    assert 1 + sum(1 for _ in stream) == len(units)
    assert first[1] in units


def test_a_failing_task_raises_and_does_not_hang(ray_session):
    import pytest

    def broken(unit: Span) -> pa.Table:
        raise OSError("disk gone")

    with pytest.raises(Exception, match="disk gone"):
        list(blocks.stream(UNITS[:3], broken, prepare, ahead=6))


def test_no_units_no_ray():
    assert list(blocks.stream([], read, prepare, ahead=6)) == []
