"""The ledger under thousands of random schedules, and the hunt, the watchdog and the tail one by one."""

from __future__ import annotations

import math
import random

import pytest

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.log import HEARTBEAT_S, Fenced
from raydecode.corpus.messages import Committed, End, Kill, Lease, Limits, Refused, Stop, Suspects, Wait
from raydecode.corpus.records import InputFile, PartMeta
from raydecode.corpus.storage import LocalStorage
from tests.corpus.power_loss import PowerLossDisk
from tests.corpus.simulation import Simulation, World, ideal_span
from tests.corpus.small_job import open_log


def lengths(rng, n, heavy=False):
    return [rng.randint(1, 12) * (20 if heavy and rng.random() < 0.02 else 1) for _ in range(n)]


def finish(world, seed):
    """Run a world and check the laws: every row exactly once, poison as errors, nothing else as an error."""
    simulation = Simulation(world, seed)
    ended = simulation.run()
    assert ended == "finished", (seed, ended)
    assert simulation.log.state.done == Cover([Span(0, 0, len(world.rows))])
    assert not simulation.log.state.hunt
    assert not simulation.log.state.condemned
    if not simulation.restarts:
        assert sorted(simulation.outcome) == list(range(len(world.rows)))
    errors = {row for row, kind in simulation.outcome.items() if kind == "error"}
    innocent = errors - world.poison - simulation.unlucky
    assert not innocent, f"innocent rows were condemned: {innocent}"
    return simulation


def test_quiet_schedules():
    for seed in range(300):
        rng = random.Random(seed)
        world = World(
            lengths(rng, rng.randint(1, 120), heavy=True),
            slots=rng.randint(1, 8),
            workers=rng.randint(1, 4),
            unit=rng.randint(1, 20),
            delay=rng.choice([0, 1, 5]),
        )
        simulation = finish(world, seed)
        assert simulation.runs == len(world.rows), "a row ran twice without a death"


def test_deaths_delays_and_doubled_messages():
    deaths = 0
    for seed in range(1200):
        rng = random.Random(10_000 + seed)
        world = World(
            lengths(rng, rng.randint(1, 60)),
            slots=rng.randint(1, 6),
            workers=rng.randint(1, 4),
            unit=rng.randint(1, 16),
            death=rng.choice([0.0, 0.002, 0.01]),
            delay=rng.choice([0, 2, 8]),
            double=rng.choice([0.0, 0.2]),
            lose_block=rng.choice([0.0, 0.2]),
            feeder_breaks=rng.choice([0.0, 0.02]),
            scale=rng.choice([0.0, 0.01]),
            limits=Limits(stall_s=100, idle_s=5000, start_s=5000, barren_deaths=1000),
        )
        deaths += finish(world, seed).deaths
    assert deaths > 500


def test_rows_that_kill_engines():
    for seed in range(400):
        rng = random.Random(20_000 + seed)
        n = rng.randint(5, 60)
        world = World(
            [length + 3 for length in lengths(rng, n)],
            slots=rng.choice([1, 4, 8]),
            workers=rng.randint(1, 3),
            unit=rng.randint(2, 12),
            poison=frozenset(rng.sample(range(n), rng.randint(1, 3))),
            delay=rng.choice([0, 3]),
            double=rng.choice([0.0, 0.2]),
        )
        simulation = finish(world, seed)
        assert {row for row, kind in simulation.outcome.items() if kind == "error"} == world.poison


def test_one_killer_costs_logarithmically_many_deaths():
    for slots in (1, 2, 4, 8, 16, 32):
        for seed in range(20):
            rng = random.Random(seed)
            world = World(
                [20] * 96, slots=slots, workers=1, unit=16, poison=frozenset([rng.randrange(96)]), poison_at_once=True
            )
            simulation = finish(world, seed)
            assert simulation.deaths <= 3 + math.ceil(math.log2(slots)), (slots, simulation.deaths)


def test_everything_at_once_with_driver_kills():
    restarts = 0
    for seed in range(400):
        rng = random.Random(30_000 + seed)
        n = rng.randint(5, 50)
        world = World(
            [length + 3 for length in lengths(rng, n)],
            slots=rng.randint(1, 6),
            workers=rng.randint(1, 3),
            unit=rng.randint(1, 12),
            poison=frozenset(rng.sample(range(n), rng.randint(0, 2))),
            death=0.003,
            delay=2,
            double=0.1,
            lose_block=0.1,
            driver_kill=0.01,
            limits=Limits(stall_s=100, idle_s=5000, start_s=5000, barren_deaths=1000),
        )
        restarts += finish(world, seed).restarts
    assert restarts > 200


def test_a_hanging_engine_is_found_by_the_watchdog():
    for seed in range(60):
        rng = random.Random(40_000 + seed)
        world = World(lengths(rng, 30), workers=2, stuck=0.002)
        finish(world, seed)


def test_an_engine_that_always_dies_ends_the_job_with_the_cause():
    simulation = Simulation(World([5] * 40, slots=8, workers=1, sick_engine=True), 0)
    ended = simulation.run()
    assert "died without committing" in ended
    assert simulation.deaths <= 9
    assert not simulation.outcome


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("heavy", [False, True])
def test_feed_is_close_to_ideal(workers, heavy):
    """Span against a schedule where every row waits at every engine, on lengths with a heavy tail."""
    ratios = []
    for seed in range(4):
        rng = random.Random(seed)
        rows = lengths(rng, 1500, heavy)
        world = World(rows, slots=16, workers=workers, unit=max(1, 1500 // (8 * 4)), start_delay=0, flush=64)
        simulation = finish(world, seed)
        ratios.append(ideal_span(rows, workers, 16) / simulation.now)
    assert sum(ratios) / len(ratios) >= 0.95, ratios
    print(f"feed, {workers} workers, heavy {heavy}: {[round(r, 3) for r in ratios]}")


def test_tail_spreads_over_idle_workers():
    """Forty rows in one block: the second worker is not left without."""
    world = World([30] * 40, slots=4, workers=2, unit=40, start_delay=0)
    simulation = finish(world, 0)
    assert simulation.now < 0.7 * 30 * 40 / 4


# one decision at a time


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def ledger(n=8, unit=4, limits=None, storage=None, **options):
    clock = Clock()
    log = open_log(
        storage or LocalStorage("/out", PowerLossDisk()), inputs=[InputFile(0, "in", "parquet", 1, "s", n)], now=clock
    )
    planned = [Span(0, a, min(a + unit, n)) for a in range(0, n, unit)]
    return Ledger(log, planned, clock, limits or Limits(), **options), clock


def rows(*keys):
    return [Span(0, key, key + 1) for key in keys]


def part(ledger, *keys, name="p", errors=0, weight=None):
    meta = PartMeta(
        f"part-{name}-{keys[0]}.parquet",
        ledger.log.attempt,
        len(keys),
        len(keys),
        0,
        weight or len(keys),
        errors,
        1,
        "",
        "",
        Cover(rows(*keys)),
    )
    for source, _ in meta.moves():
        ledger.log.storage.write(source, b"x")
    return meta


def test_blocks_go_out_once_and_lost_ones_as_units():
    one, _ = ledger()
    one.offer("ref", Span(0, 0, 4))
    first = one.next("a", 1)
    assert first == Lease(1, Span(0, 0, 4), "ref", (Span(0, 0, 4),))
    assert one.next("a", 1) == first
    assert isinstance(one.next("a", 2), Wait)
    one.end_of_input()
    assert one.next("b", 1) == Lease(2, Span(0, 4, 8), None, (Span(0, 4, 8),))
    assert isinstance(one.next("c", 1), Wait)


def test_reports_with_nothing_in_them_do_not_keep_a_hung_engine_alive():
    """Its process still reports every second; the engine's thread is what hangs."""
    one, clock = ledger(limits=Limits(stall_s=5, stall_steps=1, first_step_s=5))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(0))
    kills = []
    for _ in range(10):
        clock.now += 1
        one.started("a", [])
        one.finished("a", [])
        one.beat("a", 0, 3, 0.01)
        kills += [order for order in one.tick() if isinstance(order, Kill)]
    assert [kill.worker for kill in kills] == ["a"]


def test_offers_are_bounded_in_bytes_but_never_none():
    one, _ = ledger(limits=Limits(queue=4, queue_bytes=100))
    one.offer("huge", Span(0, 0, 2), 1000)
    assert not one.hungry(), "bytes, though only one of four"
    one.next("a", 1)
    assert one.hungry()
    one.offer("r", Span(0, 2, 3), 60)
    assert one.hungry()
    one.offer("r", Span(0, 3, 4), 60)
    assert not one.hungry()


def test_commit_is_refused_for_rows_that_are_not_leased():
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    assert one.commit("a", [part(one, 0, 1)]) == Committed()
    assert one.commit("a", [part(one, 0, 1)]) == Committed()  # the same message again
    assert isinstance(one.commit("a", [part(one, 0, 2, name="q")]), Refused)
    assert isinstance(one.commit("stranger", [part(one, 3, name="s")]), Refused)
    assert one.log.state.rows == 2
    one.end_of_input()
    got = one.next("b", 1)
    assert got.todo == (Span(0, 2, 3),)  # what the refused part really held is run again


def test_death_returns_what_was_not_committed_and_blames_rows_in_slots():
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(0, 1))
    one.finished("a", rows(0))
    one.on_death("a", "crash", "SIGSEGV")
    assert one.progress().suspects == 1
    assert one.progress().rows_rerun == 2
    assert one.next("b", 1) == Suspects(1, tuple(rows(1)), True, 1)
    assert isinstance(one.next("b", 2), Wait)  # its group first
    got = {one.next("c", 1).todo, one.next("c", 2).todo}
    assert got == {(Span(0, 0, 1),), (Span(0, 2, 4),)}


@pytest.mark.parametrize("cause", ["node_loss", "drain", "memory"])
def test_other_deaths_blame_nobody(cause):
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(0, 1))
    one.on_death("a", cause)
    assert one.progress().suspects == 0
    assert one.next("b", 1).todo == (Span(0, 0, 4),)


def test_verdict_needs_a_good_probe():
    one, _ = ledger(n=4)
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(2))
    one.on_death("a", "crash")
    group = one.next("b", 1)
    assert group.probe
    one.on_death("b", "crash")  # in the probe: the engine's fault
    group = one.next("c", 1)
    one.probed("c", group.group)
    one.started("c", group.rows)
    one.on_death("c", "crash")
    verdict = one.next("d", 1)
    assert verdict.todo == tuple(rows(2))
    assert (verdict.fault.stage, verdict.fault.type, verdict.fault.tries) == ("engine", "EngineDeath", 2)
    assert one.commit("d", [part(one, 2, errors=1)]) == Committed()
    assert one.progress().errors == 1


def test_a_restart_goes_on_with_the_hunt():
    storage = LocalStorage("/out", PowerLossDisk())
    one, _ = ledger(storage=storage)
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(0, 1, 2, 3))
    one.on_death("a", "crash")
    group = one.next("b", 1)
    one.started("b", group.rows)
    one.on_death("b", "crash")
    two, _ = ledger(storage=storage)
    halves = [two.next("c", 1), two.next("d", 1)]
    assert [half.rows for half in halves] == [tuple(rows(0, 1)), tuple(rows(2, 3))]
    assert all(half.tries == 2 for half in halves)
    two.started("c", rows(0))
    two.on_death("c", "crash")
    alone = two.next("e", 1)
    two.probed("e", alone.group)
    two.started("e", alone.rows)
    two.on_death("e", "crash")
    three, _ = ledger(storage=storage)
    verdict = three.next("f", 1)
    assert verdict.fault.type == "EngineDeath"
    assert verdict.todo == tuple(rows(0))


def test_rows_beside_a_dying_group_member_are_cleared():
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(0, 1, 2, 3))
    one.on_death("a", "crash")
    one.next("b", 1)
    one.started("b", rows(0, 1, 2, 3))
    one.finished("b", rows(0, 1))
    one.on_death("b", "crash")
    groups = {one.next("c", 1).rows, one.next("d", 1).rows}
    assert groups == {tuple(rows(2)), tuple(rows(3))}
    one.end_of_input()
    assert one.next("e", 1).todo in {(Span(0, 0, 2),), (Span(0, 4, 8),)}


def test_three_deaths_without_a_commit_end_the_job():
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    for name in "abc":
        assert isinstance(one.next(name, 1), Lease)
        one.on_death(name, "crash", "CUDA driver too old")
    assert one.next("d", 1).reason.startswith("3 workers died without committing")
    assert "CUDA driver too old" in one.next("d", 2).reason
    assert isinstance(one.tick()[-1], End)


def test_two_failed_constructors_end_the_job_but_not_when_one_starts_between():
    one, _ = ledger()
    one.on_start_failure("no such model")
    one.next("a", 1)
    one.on_start_failure("no such model")
    assert one.progress().ended is None
    one.on_start_failure("no such model")
    assert one.next("a", 2) == Stop("workers do not start: no such model")


def test_watchdog_kills_a_silent_worker_and_names_rows():
    one, clock = ledger(limits=Limits(stall_s=60, stall_steps=20))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(1))
    for clock.now in (10.0, 20.0, 30.0):
        one.beat("a", int(clock.now), 0, step_s=1.0)
    clock.now = 89.0
    assert one.tick() == []
    clock.now = 91.0
    (kill,) = one.tick()
    assert isinstance(kill, Kill)
    assert "0:1" in kill.reason
    assert one.tick() == []  # once


def test_a_heartbeat_that_fails_ends_nothing_and_one_that_is_fenced_ends_the_run(capsys):
    one, clock = ledger()

    def beat(error):
        def fail(in_flight):
            raise error

        return fail

    one.log.beat = beat(OSError("connection reset"))
    assert one.tick() == []
    assert one.ended is None
    assert "connection reset" in capsys.readouterr().err
    clock.now = HEARTBEAT_S
    one.log.beat = beat(Fenced("another run took over"))
    with pytest.raises(Fenced):
        one.tick()
    assert one.ended == "fenced"


def test_first_step_may_take_longer_and_a_worker_that_cannot_be_killed_ends_the_job():
    one, clock = ledger(limits=Limits(stall_s=60, first_step_s=300, idle_s=180))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(1))
    clock.now = 299.0
    assert one.tick() == []
    clock.now = 301.0
    assert isinstance(one.tick()[0], Kill)
    clock.now = 302.0
    assert isinstance(one.tick()[-1], End)


def test_slow_steps_are_not_a_stall():
    one, clock = ledger(limits=Limits(stall_s=60, stall_steps=20))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.started("a", rows(1))
    one.beat("a", 1, 0, step_s=10.0)
    clock.now = 150.0
    assert one.tick() == []
    clock.now = 201.0
    assert isinstance(one.tick()[0], Kill)


def test_nothing_anywhere_ends_the_job_and_says_who_waits():
    one, clock = ledger(limits=Limits(idle_s=180))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    clock.now = 181.0
    (end,) = one.tick()
    assert "0:0-4" in end.reason
    assert "a (0 running" in end.reason


def test_no_worker_ever_ends_the_job():
    one, clock = ledger(limits=Limits(start_s=900))
    clock.now = 899.0
    assert one.tick() == []
    clock.now = 901.0
    assert isinstance(one.tick()[-1], End)


def test_max_error_rate():
    one, _ = ledger(n=300, unit=150, limits=Limits(max_error_rate=0.1))
    one.offer("r", Span(0, 0, 150))
    one.next("a", 1)
    one.commit("a", [part(one, *range(50), errors=50)])
    assert one.progress().ended is None  # too few rows to judge
    one.commit("a", [part(one, *range(50, 100))])
    assert "50 of 100 rows failed (50.0%), max_error_rate allows 10.0%" in one.progress().ended


@pytest.mark.parametrize("failed", range(101))
def test_exactly_the_allowed_rate_is_allowed(failed):
    one, _ = ledger(n=100, unit=100, limits=Limits(max_error_rate=failed / 100))
    one.offer("r", Span(0, 0, 100))
    one.next("a", 1)
    one.commit("a", [part(one, *range(100), errors=failed)])
    assert one.progress().ended == "finished"


def test_unreadable_span_counts_at_its_size():
    one, _ = ledger(n=4, limits=Limits(max_error_rate=0.5))
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.commit("a", [part(one, 0, 1, 2)])
    one.commit("a", [part(one, 3, errors=1000, weight=1000)])
    assert "1000 of 1003 rows failed" in one.progress().ended


def test_end_is_recorded_once_with_its_summary():
    one, _ = ledger(n=4, finish=lambda: {"texts": 4})
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.commit("a", [part(one, 0, 1, 2, 3)])
    assert one.next("a", 2) == Stop("finished")
    assert one.log.state.summary == {"texts": 4}
    records = one.log.state.next
    again, _ = ledger(n=0, storage=one.log.storage)
    assert again.next("b", 1) == Stop("finished")
    assert again.log.state.next == records + 1  # its attempt, nothing more


def test_eta_counts_rows_that_wait_and_rows_that_run():
    one, clock = ledger(n=40, unit=40, limits=Limits(max_tokens=20))
    one.offer("r", Span(0, 0, 40))
    one.next("a", 1)
    one.started("a", rows(0, 1, 2, 3))
    assert one.progress().eta is None
    for second in range(1, 11):
        clock.now = float(second)
        one.beat("a", 4 * second, 36, step_s=1.0)
        one.tick()
    one.finished("a", rows(0, 1, 2, 3), [10] * 4)
    one.started("a", rows(4, 5, 6, 7))
    eta = one.progress().eta
    assert eta.low < 90 < eta.high  # 36 rows of 10 tokens, four at a time
    assert eta.seconds == pytest.approx(95, rel=0.05)


def test_eta_of_lines_before_the_first_commit():
    """Positions of a line file are bytes: 40 lines of 100 bytes are 40 rows, not 4000."""
    one, clock = ledger(n=4000, unit=4000, limits=Limits(max_tokens=20))
    lines = [Span(0, 100 * i, 100 * (i + 1)) for i in range(40)]
    one.offer("r", Span(0, 0, 4000))
    one.next("a", 1)
    one.started("a", lines[:4])
    for second in range(1, 11):
        clock.now = float(second)
        one.beat("a", 4 * second, 36, step_s=1.0)
        one.tick()
    one.finished("a", lines[:4], [10] * 4)
    one.started("a", lines[4:8])
    eta = one.progress().eta
    assert eta.low < 90 < eta.high
    assert eta.seconds == pytest.approx(95, rel=0.05)


def test_drained_worker_leaves_its_rows():
    one, _ = ledger()
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    one.drain("a")
    assert one.beat("a", 0, 4).stop == "drain"
    assert one.next("a", 2) == Stop("drain")
    one.leave("a")
    assert one.next("b", 1).todo == (Span(0, 0, 4),)
    assert one.progress().rows_rerun == 0


def test_gap_cover_without_rows_is_committed():
    one, _ = ledger(n=4)
    one.offer("r", Span(0, 0, 4))
    one.next("a", 1)
    gap = PartMeta("gap-000001-x", 1, 0, 0, 0, 0, 0, 0, "", "", Cover([Span(0, 0, 4)]))
    assert one.commit("a", [gap]) == Committed()
    assert one.progress().ended == "finished"
    assert one.commit("a", [gap]) == Committed()


def test_broken_twins_fail_the_simulation():
    """A simulation that cannot fail proves nothing."""

    class Forgetful(Ledger):
        def on_death(self, worker, cause, message=""):
            if worker in self._workers:
                self._workers[worker].assigned = Cover()
            super().on_death(worker, cause, message)

    class Generous(Ledger):
        def _decide(self, worker, me):
            reply = super()._decide(worker, me)
            if isinstance(reply, Lease) and reply.fault is None and len(reply.todo) == 1 and reply.todo[0].size > 1:
                self._places.pool.append(reply.todo[0])
            return reply

    for twin in (Forgetful, Generous):
        caught = 0
        for seed in range(20):
            simulation = Simulation(World([3] * 40, workers=2, death=0.05), seed)
            simulation.ledger = twin(simulation.log, simulation.planned, lambda s=simulation: s.now, Limits(idle_s=300))
            try:
                caught += simulation.run() != "finished"
            except AssertionError:
                caught += 1
        assert caught >= 15, twin
