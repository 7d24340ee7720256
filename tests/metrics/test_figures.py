"""Rows to figures: against plain recomputation on small output, and bounded on large."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from raydecode.metrics import measure
from raydecode.metrics.figures import FIRST_ROWS

ERROR = {"stage": "template", "type": "UndefinedError", "message": "no column q", "tries": 1}


def part(start: int, n: int, worker: str = "w0", errors: tuple[int, ...] = ()) -> pa.Table:
    ids = range(start, start + n)
    rows = [
        {
            "id": f"r{i}",
            "sample": 0,
            "question": f"q{i}",
            "text": None if i in errors else f"text {i}",
            "finish_reason": "error" if i in errors else "eos" if i % 2 else "length",
            "prompt_tokens": 3,
            "output_tokens": 0 if i in errors else 10 + i % 5,
            "first_token_s": 0.1,
            "total_s": 1.0,
            "worker": worker,
            "finished_at": 1000.0 + i * 0.1,
            "error": ERROR if i in errors else None,
            "_input": 0,
            "_key": i,
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows)


def test_counts_equal_plain_recomputation():
    figures = measure([part(0, 50), part(50, 50, "w1", errors=(60, 61))], {"spans": [[990.0, 1010.0]]})
    real = [10 + i % 5 for i in range(100) if i not in (60, 61)]
    assert figures["rows"] == figures["samples"] == 100
    assert figures["errors"] == 2
    assert figures["output_tokens"] == sum(real)
    assert figures["finish_reasons"] == {"length": 49, "eos": 49, "error": 2}
    assert figures["distributions"]["output_tokens"]["mean"] == pytest.approx(sum(real) / 98)
    assert figures["throughput"]["tokens_per_s_with_start"] == pytest.approx(sum(real) / 20)
    assert figures["throughput"]["tokens_per_s"] == pytest.approx(sum(real) / (9.9 + 1.0))
    assert [w["rows"] for w in figures["throughput"]["workers"]] == [50, 50]
    assert sum(rate for _, rate, _ in figures["throughput"]["over_time"]["points"]) == pytest.approx(sum(real))
    assert figures["error_kinds"][0]["count"] == 2
    assert figures["error_kinds"][0]["samples"][0] == {"id": "r60", "message": "no column q"}
    json.dumps(figures, allow_nan=False)


def test_what_stopped_rows_is_counted_and_bounded():
    said = [None, "\n", "\n", "entropy_stop: low entropy", *(f"odd: {i}" for i in range(60))]
    cells = {"id": [f"r{i}" for i in range(64)], "sample": [0] * 64, "text": ["x"] * 64, "finish_reason": ["stop"] * 64}
    figures = measure([pa.table({**cells, "stopped_by": said})], {})
    assert (figures["stopped_by"]["\n"], figures["stopped_by"]["entropy_stop: low entropy"]) == (2, 1)
    assert figures["stopped_by"]["other"] == 12
    assert sum(figures["stopped_by"].values()) == 63
    assert measure([pa.table(cells)], {})["stopped_by"] == {}


def test_drafters_are_counted_apart():
    cells = {
        "id": list("abcd"), "sample": [0] * 4, "text": list("wxyz"), "finish_reason": ["length"] * 4,
        "drafter": ["ngram", None, "ngram", "suffix"], "output_tokens": [10, 8, 20, 4], "forwards": [5, 8, 15, 4],
        "drafted": [9, 0, 6, 0], "accepted": [5, 0, 5, 0],
    }  # fmt: skip
    figures = measure([pa.table(cells), pa.table({**cells, "drafter": pa.nulls(4)})], {})
    found = {one["drafter"]: one for one in figures["drafters"]}
    assert set(found) == {"ngram", "none", "suffix"}
    assert (found["ngram"]["samples"], found["ngram"]["tokens_per_forward"]) == (2, 1.5)
    assert found["ngram"]["acceptance"] == pytest.approx(10 / 15)
    assert found["suffix"]["acceptance"] is None
    json.dumps(figures, allow_nan=False)


def test_what_served_is_counted_where_the_engine_chose():
    """Column `drafting`: sums over rows by the drafter that served, acceptance by depth, and what nobody drafted."""
    cells = [
        {"ngram": {"forwards": 4, "tokens": 9, "drafted": 12, "accepted": 5, "draft_s": 0.25, "verify_s": 0.5,
                   "failures": 3, "offered": [4, 3], "kept": [3, 2]}, "none": {"forwards": 6, "tokens": 6}},
        {"ngram": {"forwards": 1, "tokens": 1, "drafted": 2, "offered": [1], "kept": [0]},
         "suffix": {"draft_s": 0.125}},
        None,
    ]  # fmt: skip
    columns = {
        "id": list("abc"), "sample": [0] * 3, "text": list("xyz"), "finish_reason": ["length"] * 3,
        "drafter": ["auto", "auto", None], "drafting": [json.dumps(one) if one else None for one in cells],
    }  # fmt: skip
    figures = measure([pa.table(columns)], {})
    found = {one["drafter"]: one for one in figures["drafters"]}
    assert set(found) == {"ngram", "none", "suffix"}
    ngram = found["ngram"]
    assert (ngram["samples"], ngram["forwards"], ngram["drafted"], ngram["accepted"]) == (2, 5, 14, 5)
    assert (ngram["tokens_per_forward"], ngram["draft_s"], ngram["verify_s"]) == (2.0, 0.25, 0.5)
    assert (ngram["draft_failures"], found["none"]["draft_failures"]) == (3, 0)
    assert ngram["acceptance_by_depth"] == [[3 / 5, 5], [2 / 3, 3]]
    assert found["none"]["acceptance"] is None
    assert (found["suffix"]["forwards"], found["suffix"]["draft_s"]) == (0, 0.125), "asked, never chosen"
    assert figures["draft_acceptance"] == pytest.approx(5 / 14)
    assert figures["tokens_per_forward"] == pytest.approx(16 / 11)
    json.dumps(figures, allow_nan=False)


def test_samples_of_one_row_are_one_row():
    table = pa.table(
        {
            "id": ["a", "a"],
            "sample": [0, 1],
            "text": ["x", "y"],
            "finish_reason": ["eos", "eos"],
            "prompt_tokens": [5, 5],
        }
    )
    figures = measure([table], {})
    assert (figures["rows"], figures["samples"], figures["prompt_tokens"]) == (1, 2, 5)


def test_the_pause_between_two_attempts_does_not_count():
    before, after = part(0, 10), part(10_000, 10)
    figures = measure([before, after], {"spans": [[990, 1005], [1990, 2010]], "attempts": 2})
    assert figures["generating_s"] == pytest.approx(2 * (0.9 + 1.0))


def test_nothing_at_all():
    figures = measure([], {})
    assert figures["rows"] == 0
    assert figures["distributions"]["total_s"] is None
    json.dumps(figures, allow_nan=False)


def test_only_the_columns_that_are_always_there():
    table = part(0, 5).select(["id", "sample", "text", "finish_reason", "error"])
    figures = measure([table], {})
    assert figures["rows"] == 5
    assert figures["throughput"]["workers"] == []


def test_browsable_rows_are_the_first_and_all_errors():
    parts = [part(i * 100, 100, errors=(i * 100 + 7,)) for i in range(10)]
    figures = measure(parts, {})
    assert len(figures["first_rows"]) == FIRST_ROWS
    assert figures["first_rows"][0]["question"] == "q0"
    assert [row["id"] for row in figures["error_rows"]] == [f"r{i * 100 + 7}" for i in range(2, 10)]
    assert figures["error_rows_left_out"] == 0


def test_memory_does_not_grow_with_the_corpus():
    sizes = [len(json.dumps(measure((part(i * 200, 200) for i in range(n)), {}))) for n in (5, 50)]
    assert sizes[1] < sizes[0] * 1.5


def test_cost_of_known_workers_and_of_the_pool():
    job = {"price": {"per_hour": 3.6, "currency": "EUR"}, "actors": {"max": 2}}
    pool = measure([part(0, 1)], {"job": job, "spans": [[0, 100]]})["cost"]
    assert pool["amount"] == pytest.approx(0.2)
    workers = [{"worker": "a", "started_at": 10, "ended_at": 60}]
    known = measure([part(0, 1)], {"job": job, "spans": [[0, 100]], "workers": workers})["cost"]
    assert known["amount"] == pytest.approx(0.05)
    assert known["currency"] == "EUR"


def test_plan_against_fact():
    plan = {"seconds": 10.0, "seconds_low": 8.0, "seconds_high": 12.0, "output_tokens": 5.0}
    lines = {line["quantity"]: line for line in measure([part(0, 1)], {"plan": plan, "spans": [[0, 20]]})["plan"]}
    assert lines["seconds"]["inside"] is False
    assert lines["output_tokens"]["fact"] == 10


def test_long_cells_are_cut():
    table = part(0, 1).set_column(3, "text", pa.array(["x" * 5000]))
    assert len(measure([table], {})["first_rows"][0]["text"]) < 2100
