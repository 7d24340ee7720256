"""The time that is left: right on narrow and on heavy-tailed lengths, and inside its interval."""

from __future__ import annotations

import random

import pytest

from raydecode.corpus.eta import Estimate


def test_unknown_until_rows_finish_and_tokens_flow():
    one = Estimate()
    assert one.left(10, []) is None
    one.finished(50)
    assert one.left(10, []) is None
    one.mark(0.0, 0)
    one.mark(1.0, 100)
    eta = one.left(10, [])
    assert eta.low <= eta.seconds <= eta.high
    assert eta.seconds == pytest.approx(5.25)  # 500 tokens, and the last row's second half
    assert one.rate() == 100


def test_rate_is_of_the_last_minute():
    one = Estimate()
    for t in range(200):
        one.mark(float(t), t * 10 if t < 100 else 1000 + (t - 100) * 30)
    assert one.rate() == pytest.approx(30.0)


def test_no_row_is_expected_to_pass_the_limit():
    """Ages come from the clock: rows that read long prompts first look older than any row can get."""
    one = Estimate(limit=48)
    for _ in range(20):
        one.finished(48)
    one.mark(0.0, 0)
    one.mark(1.0, 96)
    eta = one.left(100, [60] * 32)
    assert eta.seconds < 48 * 132 / 96 + 48 / 3
    assert eta.high < 2 * 48 * 132 / 96


def test_running_rows_count_as_censored():
    """Ten rows of 10 finished, ten rows are at 10 already and unfinished: the mean is not 10."""
    one = Estimate(limit=100)
    for _ in range(10):
        one.finished(10)
    one.mark(0.0, 0)
    one.mark(1.0, 200)
    eta = one.left(0, [10] * 10)
    assert eta.low == 0.0
    assert eta.seconds == pytest.approx(10 * 45 / 200)  # half of the way to the limit
    assert eta.high >= 10 * 90 / 200


def simulate(seed, heavy):
    """32 slots, one token per slot and second; asked when a quarter of the rows is done: (estimate, truth)."""
    rng = random.Random(seed)
    n, slots = 600, 32
    rows = [rng.randint(1, 64) * (20 if heavy and rng.random() < 0.02 else 1) for _ in range(n)]
    one = Estimate(limit=1280 if heavy else 64)
    waiting, running, tokens, now, done, asked, eta = rows[::-1], [], 0, 0, 0, 0, None
    while waiting or running:
        while waiting and len(running) < slots:
            running.append([waiting.pop(), 0])
        now += 1
        tokens += len(running)
        for row in running:
            row[1] += 1
        for row in [r for r in running if r[1] >= r[0]]:
            running.remove(row)
            one.finished(row[0])
            done += 1
        one.mark(float(now), tokens)
        if eta is None and done >= n // 4:
            eta, asked = one.left(len(waiting), [r[1] for r in running]), now
    return eta, now - asked


@pytest.mark.parametrize("heavy", [False, True])
def test_the_interval_holds(heavy):
    found = [simulate(seed, heavy) for seed in range(40)]
    inside = sum(eta.low <= truth <= eta.high for eta, truth in found)
    ratio = sum(eta.seconds / truth for eta, truth in found) / len(found)
    assert inside >= 34
    assert (
        (0.5 if heavy else 0.9) < ratio < 1.2
    )  # few long rows have finished by then: the interval knows, the mean cannot
