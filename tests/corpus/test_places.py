"""Every planned position is in exactly one place, whatever order offers, loans, returns, commits and deaths come in."""

import random

import pytest

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.messages import Limits
from raydecode.corpus.places import Places
from raydecode.corpus.records import PartMeta
from raydecode.corpus.workers import Worker

ROWS = 48
UNITS = [Span(0, at, at + 6) for at in range(0, ROWS, 6)]


def part(*spans: Span, attempt: int = 1) -> PartMeta:
    return PartMeta("part-1", attempt, 1, 1, 1, 1, 0, 1, "", "", Cover(spans))


def positions(spans) -> list[int]:
    return [at for span in spans for at in range(span.start, span.stop)]


def walk(places: Places, rng: random.Random, done: set[int]) -> None:
    """Random moves; after each one the places are counted. Ends when all is done."""
    offers, workers, offered = [*UNITS, *rng.sample(UNITS, 3)], [Worker(), Worker()], set(done)
    rng.shuffle(offers)
    for _ in range(600):
        at = rng.randrange(len(workers))
        me, other = workers[at], workers[1 - at]
        match rng.randrange(7):
            case 0 if offers:
                offered |= set(positions([offers[-1]]))
                places.offer("block", offers.pop(), 1)
            case 1 if not offers or rng.random() < 0.02:
                places.end_of_input()
                offered = set(range(ROWS))
            case 2:
                places.lend(me)
            case 3:
                rows = [Span(0, row, row + 1) for row in positions(me.assigned.spans())]
                me.slots = dict.fromkeys(rng.sample(rows, len(rows) // 2), 0.0)
                places.give_back(me, rng.sample(rows, len(rows) // 2), (), rng.choice([None, other]))
            case 4 if spans := me.assigned.spans():
                one = part(rng.choice(spans))
                assert places.refusal(me, [one], 1) is None
                assert places.refusal(other, [one], 1) is not None, "not leased to it"
                places.settle(me, [one])
                done |= set(positions(one.cover.spans()))
            case 5:
                places.release(me, [part(*me.assigned.spans()[:1])])
            case 6 if rng.random() < 0.2:
                places.bury(me, Cover())
                workers[at] = Worker()
        here = positions([
            *places.pool, *(span for loan in places.offered for span in loan.todo),
            *(span for w in workers for span in [*w.assigned.spans(), *w.gifts]),
        ])  # fmt: skip
        assert sorted([*here, *done]) == sorted(offered), "a position is lost, or in two places"
        assert places.left == ROWS - len(done)
        if not places.left:
            return
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(30))
def test_a_position_is_in_exactly_one_place(seed: int) -> None:
    before = [Span(0, 3, 9)] if seed % 3 else []
    walk(Places(UNITS, Cover(before), Cover()), random.Random(seed), set(positions(before)))


def test_broken_twins_lose_or_double_rows() -> None:
    class Loses(Places):
        def bury(self, me, held):
            me.gifts.clear()
            super().bury(me, held)

    class Doubles(Places):
        def release(self, me, parts):
            self.pool.extend(span for part in parts for span in part.cover.spans())

    for twin in (Loses, Doubles):
        caught = 0
        for seed in range(30):
            try:
                walk(twin(UNITS, Cover(), Cover()), random.Random(seed), set())
            except AssertionError:
                caught += 1
        assert caught >= 10, twin


def test_a_part_of_another_attempt_or_twice_in_one_commit_is_refused() -> None:
    places, me = Places(UNITS, Cover(), Cover()), Worker()
    places.end_of_input()
    loan = places.lend(me)
    assert loan is not None
    assert "attempt 2" in str(places.refusal(me, [part(*loan.todo, attempt=2)], 1))
    assert "another part" in str(places.refusal(me, [part(*loan.todo), part(*loan.todo)], 1))


def test_what_an_earlier_hunt_holds_is_not_lent() -> None:
    places, me = Places(UNITS, Cover(), Cover([Span(0, 2, 4)])), Worker()
    places.offer("block", UNITS[0], 1)
    places.end_of_input()
    lent = []
    while loan := places.lend(me):
        lent += positions(loan.todo)
    assert sorted(lent) == [at for at in range(ROWS) if at not in (2, 3)]
    assert places.idle
    assert not places.hungry(Limits(), 1)
