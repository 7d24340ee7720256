"""What calls cost: measured within a limit, interpolated, corrected by what calls really take. No clock here."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from raydecode.engine import cost
from raydecode.engine.cost import LIMIT_S, OLD, REPEATS, TOKENS, CostCurve, measure, rehearsal
from raydecode.engine.toy import ToyLane
from tests.engine.curves import cpu


class Device:
    """seconds = fixed + each * tokens + row * rows, with spikes of another process on some calls."""

    def __init__(self, fixed=0.010, each=0.001, row=0.0005, spike=0.0, seed=1):
        self.fixed, self.each, self.row, self.spike = fixed, each, row, spike
        self.calls, self.spent, self.random = [], 0.0, random.Random(seed)

    def seconds(self, rows, tokens):
        return self.fixed + self.each * tokens + self.row * (rows - 1)

    def __call__(self, rows, tokens):
        self.calls.append((rows, tokens))
        seconds = self.seconds(rows, rows * tokens) + self.spike * (self.random.random() < 0.2)
        self.spent += seconds
        return seconds


def test_a_linear_device_is_found():
    device = Device()
    curve = measure(device, slots=32, longest=2000)
    for rows, tokens in [(1, 1), (1, 5), (1, 64), (1, 200), (4, 4), (16, 16), (16, 100), (32, 320)]:
        assert curve(rows, tokens) == pytest.approx(device.seconds(rows, tokens), rel=1e-6)
    assert device.spent <= LIMIT_S


def test_spikes_do_not_matter_while_one_call_of_each_is_quiet():
    curve = measure(Device(spike=0.5, seed=3), slots=1, longest=64, limit_s=60.0)
    assert curve(1, 8) == pytest.approx(Device().seconds(1, 8))


@pytest.mark.parametrize("fixed", [0.05, 0.4, 3.0])
def test_a_slow_device_is_measured_at_fewer_points(fixed):
    device = Device(fixed=fixed, each=fixed / 20, row=0.0)
    curve = measure(device, slots=8, longest=64)
    assert len(curve.tokens_N) < len(TOKENS)
    assert device.spent <= max(LIMIT_S * 1.4, fixed * 2)
    assert curve(1, 1) == pytest.approx(device.seconds(1, 1))
    if len(curve.tokens_N) == 1:
        assert curve(1, 2) == 2 * curve(1, 1), "with one point nothing is known of more tokens, so they are not cheap"


def test_small_contexts_and_caches_without_room():
    assert max(measure(Device(), slots=1, longest=5).tokens_N) == 4
    assert measure(lambda rows, tokens: math.inf, slots=4, longest=64) is None
    some = measure(lambda rows, tokens: math.inf if tokens > 8 or rows > 1 else 0.01, slots=4, longest=64)
    assert max(some.tokens_N) == 8


def test_a_dearer_pair_stays_dearer():
    """platform: in float32 2 tokens cost more than 8. A monotone envelope would hide that 8 are the better draft."""
    curve = CostCurve((1, 2, 4, 8), (47.9, 88.0, 70.0, 65.0))
    assert curve(1, 2) > curve(1, 4) > curve(1, 8) > curve(1, 1)
    assert curve.most(1, 1) >= 8


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_a_table_is_the_curve(rows):
    curve = cpu(row_s=0.001)
    for _ in range(7):
        curve.observe(rows, rows, 0.05)
        curve.observe(rows, 5 * rows, 0.2)
    for start, more in [(rows, 80), (rows + 40, 200)]:
        assert curve.table(rows, start, more) == pytest.approx([curve(rows, start + n) for n in range(more + 1)])


def test_calls_correct_the_curve():
    """Plain calls move the level, calls with drafts their residual; then both are right."""
    curve, truth = cpu(), lambda tokens: 3.0 * cpu()(1, tokens) * (1.5 if tokens > 1 else 1.0)
    for _ in range(60):
        for tokens in (1, 9, 9):
            curve.observe(1, tokens, truth(tokens))
    assert curve(1, 1) == pytest.approx(truth(1), rel=0.02)
    assert curve(1, 9) == pytest.approx(truth(9), rel=0.05)
    assert curve(8, 9) == cpu()(8, 9), "other batch sizes were not seen"


def test_a_pause_of_the_machine_counts_little():
    curve = cpu()
    curve.observe(1, 1, 60.0)
    assert curve(1, 1) < 1.2 * cpu()(1, 1)


def test_a_residual_fades_while_nothing_is_drafted():
    curve = cpu()
    for _ in range(30):
        curve.observe(1, 8, 10 * cpu()(1, 8))
    assert curve(1, 8) > 2 * cpu()(1, 8)
    for _ in range(3000):
        curve.observe(1, 1, cpu()(1, 1))
    assert curve(1, 8) < 1.05 * cpu()(1, 8)


def test_a_plain_call_is_due_now_and_then():
    curve = cpu()
    steps = [curve.stale(1) or curve.observe(1, 8, curve(1, 8)) for _ in range(OLD + 1)]
    assert steps.index(True) == OLD
    curve.observe(1, 1, curve(1, 1))
    assert not curve.stale(1)
    for _ in range(OLD // 8):
        curve.observe(1, 8, 3 * curve(1, 8))
    assert curve.stale(1), "calls with drafts became dearer: is it the drafts, or the machine?"


def test_what_could_pay_at_most_falls_with_the_batch():
    most = [cpu().most(rows, rows) for rows in (1, 2, 4, 8, 16, 32)]
    assert all(a >= b for a, b in itertools.pairwise(most))
    assert cpu().most(1, 1) >= 16 > cpu().most(32, 32)
    assert cpu().most(1, 400) <= cpu().most(1, 1), "a prompt that is read in the same call makes no token cheaper"


def test_a_lane_is_rehearsed_in_free_slots_and_left_as_it_was():
    lane, ticks = ToyLane(slots=4, context=64), itertools.count()
    run = rehearsal(lane, [1, 3], lambda: float(next(ticks)))
    assert run(2, 8) == 1.0
    lane.check([])
    curve = measure(run, slots=2, longest=lane.context - 1, limit_s=1e9)
    assert max(curve.tokens_N) == 32
    lane.check([])


def test_a_full_cache_says_inf_and_gives_everything_back():
    lane = ToyLane(slots=2, context=64, tokens=64)
    assert lane.reserve(0, 0, 60)
    assert rehearsal(lane, [1], lambda: 0.0)(1, 32) == math.inf
    lane.release(0)
    lane.check([])


def test_repeats_are_counted():
    device = Device()
    measure(device, slots=1, longest=1)
    assert device.calls == [(1, 1)] * (REPEATS + 1)
    assert cost.TOKENS[0] == 1, "without the cost of one token there is no curve"


def test_measured_once_per_key_and_every_caller_has_its_own_corrections():
    device, key = Device(), ("test_cost", object())
    first, second = (cost.once(key, lambda: measure(device, slots=4, longest=64)) for _ in range(2))
    calls = len(device.calls)
    assert calls == len(set(device.calls)) * (REPEATS + 1), "each point once"
    first.observe(1, 1, 5.0)
    assert second(1, 1) == cost.once(key, dict)(1, 1) == pytest.approx(device.seconds(1, 1))
    assert first(1, 1) > second(1, 1)
    assert cost.once(None, lambda: measure(device, slots=1, longest=1)) is not None
    assert len(device.calls) > calls, "without a key it is asked again"
    assert cost.once(("test_cost", object()), lambda: None) is None


def test_far_points_are_for_devices_with_short_calls():
    assert max(measure(Device(fixed=0.001, each=0.00001), slots=32, longest=2000).tokens_N) == cost.FAR[-1]
    assert max(measure(Device(fixed=0.03, each=0.003), slots=32, longest=2000).tokens_N) <= TOKENS[-1]


def test_few_tokens_are_measured_also_where_calls_take_long():
    """Kernels whose price bends: 4 tokens are nearly free, 8 are not. A line from 1 to 8 would take 4 for dear."""
    bent = {1: 1.0, 2: 1.04, 4: 1.24, 8: 1.97, 16: 2.88, 32: 5.6, 64: 11.0}
    curve = measure(lambda rows, tokens: 0.06 * bent[tokens], slots=1, longest=64)
    assert curve(1, 4) / curve(1, 1) == pytest.approx(1.24)
    assert max(curve.tokens_N) < 64


def test_what_a_prompt_s_logits_cost_is_the_difference():
    tells = Device(fixed=0.01, each=0.003)
    assert cost.told(tells, Device(fixed=0.01, each=0.001), 2000) == pytest.approx(32 * 0.002 / 31)
    assert cost.told(Device(), Device(each=0.002), 2000) == 0.0, "noise is no gain"
    assert cost.told(lambda rows, tokens: math.inf, Device(), 2000) == 0.0
    assert cost.told(tells, Device(), 1) == 0.0


def test_a_prompt_is_rehearsed_with_logits_behind_its_last_token():
    lane, seen = ToyLane(slots=2, context=64), []
    forward = lane.forward

    def spied(chunks, needs):
        seen.append([(chunk.prefix, len(chunk.tree)) for chunk in chunks])
        return forward(chunks, needs)

    lane.forward = spied
    rehearsal(lane, [0], lambda: 0.0, reads=True)(1, 5)
    rehearsal(lane, [0], lambda: 0.0)(1, 5)
    assert seen == [[((0, 0, 0, 0), 1)], [((), 5)]]
    lane.check([])
