"""Histogram, timeline, forecast."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydecode.metrics import Histogram, Timeline, compare, forecast
from raydecode.metrics.timeline import MOST


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_within_two_percent(values, q):
    histogram = Histogram()
    histogram.add(np.array(values[: len(values) // 2]))
    histogram.add(np.array(values[len(values) // 2 :]))
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.021, abs=1e-12)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert sum(count for _, _, count in histogram.bars()) == len(values)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 10)), min_size=1, max_size=300))
def test_a_timeline_keeps_its_sum_and_its_size(points):
    line = Timeline()
    for at, amount in points:
        line.add(np.array([at]), np.array([amount]))
    rates = line.rates()
    assert sum(rate * line.width_s for _, rate in rates) == pytest.approx(sum(amount for _, amount in points))
    assert len(rates) <= MOST


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 2e3), st.floats(0, 10)), min_size=1, max_size=60))
def test_spread_amounts_lie_where_they_accrued(rows):
    began, took, amounts = np.array(rows).T
    line = Timeline()
    for i in range(len(rows)):
        line.spread(began[i : i + 1], (began + took)[i : i + 1], amounts[i : i + 1])
    rates = line.rates()
    assert sum(rate * line.width_s for _, rate in rates) == pytest.approx(amounts.sum(), rel=1e-6, abs=1e-6)
    assert len(rates) <= MOST
    for at, rate in rates:
        ends = np.minimum(began + took, at + line.width_s) - np.maximum(began, at)
        instant = (took <= 1e-6) & (np.floor((began + took) / line.width_s) * line.width_s == at)
        share = np.where(took > 1e-6, np.clip(ends, 0, None) / np.maximum(took, 1e-6), instant)
        assert rate * line.width_s == pytest.approx((share * amounts).sum(), rel=1e-5, abs=1e-5)


def test_a_timeline_does_not_depend_on_order():
    points = [(random.Random(i).uniform(0, 5000), 1.0) for i in range(200)]
    a, b = Timeline(), Timeline()
    a.add(*np.array(points).T)
    for at, amount in reversed(points):
        b.add(np.array([at]), np.array([amount]))
    assert np.array(a.rates()) == pytest.approx(np.array(b.rates()))


def test_forecast_scales_and_prices():
    price = {"per_hour": 3600, "currency": "EUR"}
    lengths = [(10, 10), (20, 20), (30, 30)]
    plan = forecast(
        rows=1000,
        failing_share=0.1,
        lengths=lengths,
        rates=[90, 110],
        startup_s=5,
        memory_bytes=7,
        actors=2,
        price=price,
    )
    assert plan.output_tokens == pytest.approx(18000)
    assert plan.seconds == pytest.approx(5 + 18000 / 200)
    assert plan.cost == pytest.approx(plan.seconds * 2)
    assert plan.seconds_low < plan.seconds < plan.seconds_high
    assert plan.failing_rows == pytest.approx(100)
    one = forecast(rows=10, failing_share=0, lengths=[(4, 4)], rates=[8], startup_s=0, memory_bytes=0)
    assert one.cost is None
    assert math.isfinite(one.seconds_high)


def test_rows_that_still_ran_widen_the_interval_up_to_the_limit():
    known = forecast(rows=100, failing_share=0, lengths=[(10, 10)] * 20, rates=[9, 11], startup_s=0, memory_bytes=0)
    open_ = forecast(
        rows=100, failing_share=0, lengths=[(5, 40)] * 20, rates=[9, 11], startup_s=0, memory_bytes=0, limit=40
    )
    assert known.output_tokens_high - known.output_tokens_low < 1
    assert (open_.output_tokens_low, open_.output_tokens_high) == pytest.approx((500, 4000))
    assert open_.seconds_low < 50 < 400 < open_.seconds_high


def test_compare_leaves_out_what_is_not_known():
    assert compare({"seconds": 1.0}, {"seconds": None, "cost": 3.0}) == []
