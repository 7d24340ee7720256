"""`auto` in a simulated world: drafters of known quality, a device of known cost, and the time that all of it takes.

Texts are drawn beforehand. A drafter's proposal is the text that will come with some tokens wrong, so its acceptance is
known. Time is counted, not measured: calls by the true curve, drafters by their price.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from raydecode.engine.choose import KINDS, Chooser
from raydecode.engine.cost import CostCurve
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.engine.curves import cpu, gpu


@dataclass(frozen=True)
class Fake:
    """chance: kind -> P(a token of the chain is right); seconds: of one row's proposal; silent: P(no proposal)."""

    chance: dict[str, float]
    seconds: float = 0.0001
    silent: float = 0.0

    def tree(self, draw, row, budget):
        if draw.random() < self.silent:
            return TokenTree.root(0)
        ahead = row.text[row.t : row.t + budget]
        chain = [token if draw.random() < self.chance[row.kind] else 1000 for token in ahead]
        tree = TokenTree.chain((0, *chain))
        return replace(tree, est=(1.0, *(0.5 for _ in chain)))


@dataclass
class Running:
    kind: str
    text: list[int]
    t: int = 0
    seat: object = None


def simulate(fakes, kinds, *, curve=None, truth=None, batch=1, tokens=300, rows=6, seed=0):
    """(seconds, seconds of plain decoding, name -> calls that it served, drafted tokens per row and call)."""
    draw = random.Random(seed)
    truth = truth or cpu()
    curve = curve or cpu()
    chooser = Chooser([Card(name) for name in fakes], curve)
    queue = [Running(kinds[i % len(kinds)], [draw.randrange(100) for _ in range(tokens)]) for i in range(rows)]
    running, seconds, plain, served, drafted, calls = [], 0.0, 0.0, dict.fromkeys([*fakes, "none"], 0), 0, 0
    while queue or running:
        while queue and len(running) < batch:
            running.append(queue.pop(0))
            running[-1].seat = chooser.seat(running[-1].kind)
        count = len(running)
        most, awake = curve.most(count, count), chooser.awake()
        proposals = []
        for row in running:
            some = {}
            for arm in chooser.ask(row.seat, awake):
                fake = fakes[chooser.arms[arm].card.name]
                budget = min(chooser.budget(arm, most), len(row.text) - row.t - 1)
                if budget > 0:
                    some[arm] = fake.tree(draw, row, budget)
                    chooser.charge(arm, fake.seconds, 1)
                    seconds += fake.seconds
            proposals.append(some)
        picks = chooser.choose([row.seat for row in running], proposals, count, count)
        size = count + sum(len(pick.tree) - 1 for pick in picks if pick)
        took = truth(count, size)
        curve.observe(count, size, took)
        chooser.spent_s += took
        seconds += took
        calls += count
        for row, pick in zip(running, picks, strict=True):
            tree = pick.tree if pick else TokenTree.root(0)
            emitted, node = [], 0
            while node is not None and row.t < len(row.text):
                emitted.append(row.text[row.t])
                plain += truth(count, count) / count
                row.t += 1
                node = tree.child(node, emitted[-1])
            served[pick.drafter.name if pick else "none"] += 1
            drafted += len(tree) - 1
            chooser.learn(row.seat, emitted)
            if pick:
                chooser.paid(pick.drafter, count, size, len(tree) - 1, len(emitted) - 1)
        running = [row for row in running if row.t < len(row.text)]
    return seconds, plain, served, drafted / calls


GOOD, BAD = Fake({"a": 0.8, "b": 0.8}), Fake({"a": 0.02, "b": 0.02})


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_it_never_loses_where_nothing_pays(batch):
    fakes = {"bad": BAD, "worse": Fake({"a": 0.0}), "mute": Fake({"a": 0.5}, silent=1.0)}
    seconds, plain, served, _ = simulate(fakes, "a", batch=batch, rows=max(4, batch))
    assert seconds < 1.03 * plain
    assert served["none"] > 0.93 * sum(served.values())


def test_a_dear_drafter_that_never_pays_is_asked_rarely():
    """A model of its own that costs three plain steps per proposal."""
    seconds, plain, served, _ = simulate({"dear": Fake({"a": 0.3}, seconds=0.09)}, "a")
    assert seconds < 1.03 * plain
    assert served["dear"] <= 5


def test_a_dear_drafter_that_pays_is_used():
    """Nine of ten tokens right for one plain step per proposal."""
    seconds, plain, served, _ = simulate({"dear": Fake({"a": 0.93}, seconds=0.03)}, "a", tokens=1500, rows=4)
    assert seconds < 0.6 * plain
    assert served["dear"] > served["none"]


def test_a_good_drafter_is_found_at_once():
    seconds, plain, served, size = simulate({"bad": BAD, "good": GOOD}, "a", tokens=200, rows=1)
    assert seconds < 0.45 * plain
    assert served["bad"] <= 2
    assert 4 <= size <= 24


def test_each_kind_of_row_gets_its_own():
    """Two drafters, each good for one kind of row and useless for the other, and a kind where neither is."""
    fakes = {"copies": Fake({"a": 0.85, "b": 0.05, "c": 0.02}), "recalls": Fake({"a": 0.05, "b": 0.7, "c": 0.02})}
    whole = simulate(fakes, "abc", rows=9)
    only = {name: simulate({name: fake}, "abc", rows=9)[0] for name, fake in fakes.items()}
    assert whole[0] < 0.85 * min(only.values())
    assert whole[2]["copies"] > 100
    assert whole[2]["recalls"] > 100
    for kind, best in (("a", "copies"), ("b", "recalls")):
        seconds, _, served, _ = simulate(fakes, kind, rows=9)
        assert seconds < 1.04 * simulate({best: fakes[best]}, kind, rows=9)[0]
        assert served[best] > 20 * served[({*fakes} - {best}).pop()]


def test_rows_of_one_kind_may_differ():
    """The kind says nothing here; the row's own fit does."""
    fake = Fake({"good": 0.85, "bad": 0.03})

    def hidden(draw, row, budget):
        return Fake.tree(replace(fake), draw, replace(row, kind=("good", "bad")[row.text[0] % 2]), budget)

    class Blind(Fake):
        tree = staticmethod(hidden)

    seconds, plain, _, _ = simulate({"d": Blind({})}, "a", rows=12)
    assert seconds < 0.85 * plain


def test_a_batch_makes_trees_smaller_and_an_accelerator_larger():
    sizes = [simulate({"good": GOOD}, "a", batch=batch, rows=batch * 2, tokens=200)[3] for batch in (1, 4, 16)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert simulate({"good": Fake({"a": 0.95})}, "a", curve=gpu(), truth=gpu())[3] > 2.5 * sizes[0]


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_wrong_curve_is_corrected(factor):
    """What was measured at the start says that drafted tokens cost a third, or three times, of what they do."""
    true = cpu()
    wrong = CostCurve(true.tokens_N, [true(1, 1) + (true(1, n) - true(1, 1)) * factor for n in true.tokens_N])
    fakes = {"some": Fake({"a": 0.45}), "bad": BAD}
    seconds, plain, _, _ = simulate(fakes, "a", curve=wrong, tokens=500)
    right = simulate(fakes, "a", tokens=500)[0]
    assert seconds < 1.03 * plain
    assert seconds < 1.06 * right


def test_a_device_whose_drafts_are_dearer_than_measured():
    """A curve that promises free tokens where each costs a tenth of a call: learned in what may be lost."""
    dear = CostCurve((1, 2), (0.03, 0.033))
    seconds, plain, served, _ = simulate({"weak": Fake({"a": 0.1})}, "a", curve=gpu(), truth=dear, tokens=500)
    assert seconds < 1.04 * plain
    assert served["weak"] < 0.15 * sum(served.values())


def test_a_twin_that_ignores_the_cost_loses():
    """The same chooser with a curve on which every token is free, and that learns nothing of what calls take."""
    fakes = {"weak": Fake({"a": 0.1})}
    blind = CostCurve((1, 1000), (0.03, 0.03), fixed=True)
    twin, plain, _, _ = simulate(fakes, "a", curve=blind)
    honest, _, _, _ = simulate(fakes, "a")
    assert twin > 1.2 * plain
    assert honest < 1.03 * plain


def test_a_twin_that_asks_everybody_always_loses(monkeypatch):
    """Without accounts a dear drafter is paid at every step."""
    monkeypatch.setattr(Chooser, "awake", lambda self: list(range(len(self.arms))))
    monkeypatch.setattr(Chooser, "ask", lambda self, seat, awake: list(awake))
    seconds, plain, _, _ = simulate({"dear": Fake({"a": 0.3}, seconds=0.09)}, "a")
    assert seconds > 1.5 * plain


def test_a_change_within_a_row_is_noticed():
    """A drafter that is right in the first half of each text and wrong in the second."""

    class Turning(Fake):
        def tree(self, draw, row, budget):
            return Fake.tree(Fake({"a": 0.85 if row.t < 150 else 0.02}), draw, row, budget)

    seconds, plain, served, _ = simulate({"turning": Turning({})}, "a")
    assert seconds < 0.75 * plain
    assert served["none"] > served["turning"]


def test_proposals_that_are_roots_are_no_choice():
    chooser = Chooser([Card("d")], cpu())
    seat = chooser.seat("k")
    assert chooser.choose([seat], [{0: TokenTree.root(5)}], 1, 1) == [None]
    assert chooser.choose([seat], [{}], 1, 1) == [None]
    assert seat.watches == []


def test_a_neighbour_that_always_drafts_silences_nobody():
    """A plain call is asked for now and then, to be timed; where none can be plain, drafting goes on."""
    chooser = Chooser([Card("d")], gpu())
    for _ in range(200):
        chooser.curve.observe(2, 4, chooser.curve(2, 4))
    assert chooser.curve.stale(2)
    proposal = [{0: TokenTree(token=(0, 1, 2), parent=(-1, 0, 1), est=(1.0, 0.9, 0.9))}]
    assert chooser.choose([chooser.seat("k")], proposal, 2, 2) == [None], "this call shall be plain"
    assert chooser.choose([chooser.seat("k")], proposal, 2, 3) != [None]


def test_saved_seconds_do_not_count_other_rows_tokens():
    """The twin that priced a token by the whole call booked hundreds beside a prompt."""
    chooser = Chooser([Card("d")], cpu())
    chooser.paid(Card("d"), 1, 512 + 4, 3, 3)
    assert chooser.arms[0].saved < 3 * chooser.curve(1, 1)


def test_kinds_of_rows_are_bounded():
    chooser = Chooser([Card("d")], cpu())
    assert {chooser.seat(kind).kind for kind in range(100)} == set(range(KINDS + 1))
    assert chooser.seat(3).kind == 3


def test_prompts_are_told_where_the_account_has_room():
    """Their logits cost 1 ms a token here; at the start an account has room for four calls of 28.9 ms."""
    chooser = Chooser([Card("reads"), Card("d")], cpu(told_s=0.001), readers=[Card("reads")])
    assert chooser.hears(200) == []
    assert chooser.hears(100) == [0]
    chooser.heard([0], 100)
    assert chooser.arms[0].seconds == pytest.approx(0.1)
    assert chooser.hears(100) == []
    chooser.arms[0].saved = 1.0
    assert chooser.hears(100) == [0]
    both = Chooser([Card("a"), Card("b")], cpu(told_s=0.001), readers=[Card("a"), Card("b")])
    both.heard([0, 1], 100)
    assert [arm.seconds for arm in both.arms] == pytest.approx([0.05, 0.05]), "one call's logits serve both"
    assert Chooser([Card("d")], cpu(told_s=0.001)).hears(1) == [], "nobody learns from prompts"
