"""SWIFT: sets of blocks, their scores and the search against their definitions; drafts against the reduced model."""

from __future__ import annotations

import random

import pytest

from raydecode.conformance.drive import drive
from raydecode.drafters import swift
from raydecode.drafters.swift import Search, Swift
from raydecode.engine.toy import BLOCKS, EOS, ToyEngine, logits
from raydecode.request import Card, DecodingSpec, Ids, Request

LAYERS = tuple(f"{kind}.{i}" for i in range(12) for kind in ("attention", "mlp"))
DEFAULTS = {name: field.default for name, field in Swift.Options.model_fields.items()}


def search(**options) -> Search:
    found = Search({**DEFAULTS, **options})
    found.begin(LAYERS)
    return found


def test_sets_leave_the_first_and_the_last_layer_alone():
    one = search(skip=0.45)
    assert len(one.best) == int(0.45 * 20)
    assert all(int(block.split(".")[1]) % 2 for block in one.best), "every second layer first"
    for _ in range(60):
        candidate = one.candidate()
        assert len(candidate) == len(one.best)
        assert not {"attention.0", "mlp.0", "attention.11", "mlp.11"} & candidate
        assert candidate <= set(LAYERS)
        one.tell(candidate, 0.4, 0.5)


def test_the_better_of_two_scores_stays():
    one = search()
    first, other = one.best, one.candidate()
    one.tell(other, 0.6, 0.7)
    assert (one.best, one.score, one.vain) == (first, 0.7, 1)
    one.tell(other, 0.8, 0.7)
    assert (one.best, one.score, one.vain) == (other, 0.8, 0)
    assert [gain for _, gain in one.tried] == pytest.approx([-0.2, 0.0]), "gains are over the set that is best now"
    one.tell(first, 0.8, 0.8)
    assert one.best == other, "an equal score moves nothing"


@pytest.mark.parametrize(
    ("options", "scores"),
    [({"tries": 3}, [(0.1, 0.2)] * 3), ({"patience": 2}, [(0.1, 0.2)] * 2), ({"enough": 0.9}, [(0.95, 0.2)])],
)
def test_the_search_ends(options, scores):
    one = search(**options)
    for number, pair in enumerate(scores, 1):
        assert not one.done
        assert one.due()
        one.tell(one.candidate(), *pair)
        assert one.done == (number == len(scores))
    assert not one.due()
    assert search(tries=0).done
    assert search(skip=0.0).done


def test_every_interval_th_step_tries():
    one = search(interval=4)
    assert [one.due() for _ in range(8)] == [False, False, False, True] * 2


def test_the_process_finds_better_sets_than_chance():
    """A truth that is a sum over blocks, some of which cost much: after 50 random tries its pick is among the best."""
    dice = random.Random(2)
    worth = {block: dice.random() ** 3 for block in LAYERS}
    one = search()

    def truth(blocks):
        return -sum(worth[block] for block in blocks)

    base = truth(one.best)
    for _ in range(50):
        blocks = one._random()
        one.tried.append((blocks, truth(blocks) - base + dice.gauss(0, 0.05)))
    chance = sorted(truth(one._random()) for _ in range(1000))
    one.tries = swift.BAYES
    picks = [truth(one.candidate()) for _ in range(5)]
    assert sum(picks) / 5 > chance[900], "above nine of ten random sets"


class Watched(Swift):
    """Recomputes every score and every draft from the toy's own table."""

    def __init__(self):
        self.scored = self.drafted = 0

    def propose(self, rows, budgets, shared, options):
        inner = super().propose(rows, budgets, shared, options)
        outs, wishes = None, []
        while True:
            try:
                wish = next(inner) if outs is None else inner.send(outs)
            except StopIteration as done:
                trees = done.value
                break
            outs = yield wish
            wishes.append((wish, outs))
        views = {row.id: row for row in rows}
        for wish, answers in wishes:
            for (id, _), out in zip(wish.items, answers, strict=True):
                for i, one in enumerate(out.window):
                    context = views[id].context[: len(views[id].context) - len(out.window) + i]
                    assert one.top_ids[0] == int(logits(context, wish.skip).argmax())
                    self.scored += 1
        (found,) = shared.values()
        for row, budget, tree in zip(rows, budgets, trees, strict=True):
            self._same(row, budget, tree, found.best, options)
        return trees

    def _same(self, row, budget, tree, skip, options):
        path, room = [], min(budget, options["depth"] * options["siblings"])
        nodes = [(row.pending, -1)]
        tip = 0
        while room > 0 and len(path) < options["depth"]:
            p = logits((*row.context, *path), skip).softmax(0)
            ids = p.argsort(descending=True)[: min(options["siblings"], room)].tolist()
            above, tip = tip, len(nodes)
            nodes += [(id, above) for id in ids]
            room -= len(ids)
            path.append(ids[0])
            if float(p.max()) < options["confidence"] or path[-1] == EOS:
                break
        assert list(zip(tree.token, tree.parent, strict=True)) == nodes
        self.drafted += len(path)


@pytest.mark.parametrize(
    "options", [{"siblings": 2, "confidence": 0.0, "depth": 4}, {"confidence": 0.7}], ids=["wide", "sure"]
)
def test_drafts_and_scores_are_those_of_the_reduced_model(options):
    watched = Watched()
    card = Card("swift", {"skip": 0.5, "window": 5, "enough": 1.0, **options})
    spec = DecodingSpec(max_tokens=25, sampler=(Card("greedy"),), drafter=card, ignore_eos=True)
    engine = ToyEngine(given={("drafters", "swift"): watched})
    run = drive(engine, [Request(str(i), str(i), Ids((i, 0, 1)), spec) for i in range(3)])
    assert all(one.stats.draft_failures == 0 for one in run.outcomes.values())
    assert watched.scored > 25
    assert watched.drafted > 20


def test_with_nothing_left_out_every_draft_is_kept():
    card = Card("swift", {"skip": 0.0, "confidence": 0.0, "depth": 6})
    chain = (Card("temperature", {"value": 1.3}), Card("top_p", {"p": 0.9}))
    spec = DecodingSpec(max_tokens=30, seed=2, sampler=chain, drafter=card, ignore_eos=True)
    run = drive(ToyEngine(), [Request(str(i), str(i), Ids((i, 0, 1)), spec) for i in range(3)])
    for one in run.outcomes.values():
        assert one.stats.accepted > 15
    assert set(BLOCKS) == {f"{kind}.{i}" for kind in ("attention", "mlp") for i in range(3)}
