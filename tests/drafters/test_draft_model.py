"""Draft model: the chain against the other model's own numbers, the coupling against its bound, the laws."""

from __future__ import annotations

import dataclasses
import math

import pytest

from raydecode import registry
from raydecode.conformance import drafters
from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.drafters.draft_model import DraftModel
from raydecode.engine.lane import Chunk
from raydecode.engine.toy import EOS, ToyEngine, ToyLane
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.tree import TokenTree


@pytest.mark.parametrize("law", drafters.LAWS, ids=lambda law: law.__name__)
def test_law(law):
    """It loads a model, so the test of every method leaves it out; the toy engine has one."""
    law(registry.get("drafters", "draft_model"))


def said(context):
    """log-probabilities of the toy engine's other model, fed alone."""
    lane = ToyLane(1, 128, blur=0.25)
    assert lane.reserve(0, 0, len(context))
    chunk = Chunk(0, 0, tuple(context[:-1]), TokenTree.root(context[-1]))
    return lane.forward([chunk], Needs()).logits_MV[0].log_softmax(0)


class Watched(DraftModel):
    """Compares each greedy draft with the other model's likeliest tokens."""

    def __init__(self):
        self.compared = 0

    def propose(self, rows, budgets, shared, options):
        trees = yield from super().propose(rows, budgets, shared, options)
        for row, budget, tree in zip(rows, budgets, trees, strict=True):
            path, est = [], [1.0]
            while len(path) < min(budget, options["depth"]) and (not path or path[-1] != EOS):
                logp = said((*row.context, *path))
                if math.exp(logp.max()) < options["confidence"]:
                    break
                path.append(int(logp.argmax()))
                est.append(math.exp(logp.max()))
            assert tree.token == (row.pending, *path)
            assert tree.parent == tuple(range(-1, len(path)))
            assert tree.est == pytest.approx(est, abs=1e-5)
            self.compared += len(path)
        return trees


@pytest.mark.parametrize("options", [{"depth": 4, "confidence": 0.0}, {"confidence": 0.6}], ids=["deep", "sure"])
def test_the_draft_is_what_the_other_model_says(options):
    watched = Watched()
    card = Card("draft_model", {"model": "toy", **options})
    spec = DecodingSpec(max_tokens=20, sampler=(Card("greedy"),), ignore_eos=False, drafter=card)
    engine = ToyEngine(given={("drafters", "draft_model"): watched})
    run = drive(engine, [Request(str(i), str(i), Ids((i, 0, 1)), spec) for i in range(4)])
    assert all(one.stats.draft_failures == 0 for one in run.outcomes.values())
    assert watched.compared > 20


def test_sampled_rows_agree_as_often_as_the_coupling_promises():
    """(1 - TV) / (1 + TV) at the first drafted token, over the contexts that came up; independent draws agree less."""
    card = Card("draft_model", {"model": "toy", "depth": 1, "confidence": 0.0})
    spec = DecodingSpec(
        max_tokens=40, seed=3, ignore_eos=True, sampler=(Card("temperature", {"value": 2.5}),), drafter=card
    )
    run = drive(ToyEngine(), [Request(str(i), str(i), Ids((i % 4, 1)), spec) for i in range(30)])
    stats = [one.stats for one in run.outcomes.values()]
    kept = sum(one.accepted for one in stats) / sum(one.drafted for one in stats)
    from raydecode.engine.toy import logits

    promised, apart = [], []
    for row, one in run.outcomes.items():
        context = (int(row.request) % 4, 1, *one.tokens)
        for end in range(2, len(context)):
            p, q = (logits(context[:end]) / 2.5).softmax(0), (said(context[:end]) / 2.5).softmax(0)
            distance = float((p - q).abs().sum() / 2)
            promised.append((1 - distance) / (1 + distance))
            apart.append(float((p * q).sum()))
    assert len(promised) > 1000
    assert kept > sum(promised) / len(promised) - 0.03
    assert kept > sum(apart) / len(apart) + 0.05


def test_options_are_checked():
    from raydecode.config import parse_decoding
    from raydecode.errors import UserError

    with pytest.raises(UserError) as caught:
        parse_decoding({"drafter": "draft_model"})
    assert caught.value.field == "decoding.drafter.model"
    with pytest.raises(UserError) as caught:
        parse_decoding({"drafter": {"name": "draft_model", "model": "toy", "confidence": 2}})
    assert caught.value.field == "decoding.drafter.confidence"
    assert dataclasses.is_dataclass(parse_decoding({"drafter": {"name": "draft_model", "model": "toy"}}))
