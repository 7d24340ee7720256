"""Narrowed is full: rows that carry a few candidates are, bit for bit, rows that carry their whole width."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from raydecode import registry
from raydecode.conformance.options import option_sets
from raydecode.engine import candidates, chain
from raydecode.engine.cards import complete
from raydecode.engine.rows import Row
from raydecode.engine.walk import refuse_empty
from raydecode.randomness import draw
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId

SIZE, ROWS = 3000, 6
INSIDE = {"dola"}  # reads the model's inside: no chain of this test has one
T, P, K = Card("temperature", {"value": 0.8}), Card("top_p", {"p": 0.9}), Card("top_k", {"k": 40})
LIVE = {method.name: method.factory() for method in registry.cards("samplers")}
SINGLE = [(Card(m.name, one),) for m in registry.cards("samplers") if m.name not in INSIDE for one in option_sets(m)]
CHAINS = [
    (), (T, P), (P, T), (K, P, T), (Card("greedy"),), (Card("min_p", {"p": 0.05}), Card("typical", {"p": 0.9})),
    (Card("repetition_penalty", {"value": 1.3}), T, P), (K, Card("dry", {"allowed_length": 1})), (T, Card("mirostat1")),
    (K, Card("frequency_penalty", {"value": 1.0}), Card("mirostat2", {"tau": 2.0})), (P, Card("mirostat2")),
    (T, Card("xtc", {"threshold": 0.01, "probability": 0.7}), P), (P, Card("xtc", {"threshold": 0.02}), K),
    (Card("top_n_sigma", {"n": 1.0}), Card("eta", {"epsilon": 2e-3}), Card("dynamic_temperature")),
    (K, Card("logit_bias", {"bias": {3: 2.0, 2999: -5.0}}), P), (P, Card("no_repeat_ngram", {"n": 2}), T),
    (Card("mirostat2"), P), (Card("top_k", {"k": 2900}), Card("epsilon", {"epsilon": 1e-3})),
]  # fmt: skip


def _rows(chains) -> list[Row]:
    rows = []
    for i, cards in enumerate(chains):
        spec = complete(DecodingSpec(max_tokens=9, sampler=cards, seed=4))
        context = [(7 * i + j * j) % 50 for j in range(12)]
        row = Row(RowId(str(i)), Request(str(i), str(i), Ids((1,)), spec), spec, 977 * i + 5, context, 8, 9)
        for card in spec.sampler:
            row.sampler_state.append({n: float(f(card.options)) for n, f in LIVE[card.name].columns.items()})
        rows.append(row)
    return rows


def _logits(count: int) -> torch.Tensor:
    x_RV = torch.randn(count, SIZE, generator=torch.Generator().manual_seed(8))
    x_RV *= torch.tensor([0.05, 1.0, 3.0, 9.0])[torch.arange(count) % 4, None]
    x_RV[1::5] = (x_RV[1::5] * 2).round() / 2
    x_RV[2::7, 100:] = -math.inf
    return x_RV


def _step(x_RV: torch.Tensor, rows: list[Row]) -> tuple[candidates.Candidates, torch.Tensor, list]:
    """What a step of the walk does; states after it."""
    before = x_RV.clone()
    left, observations = chain.shape(x_RV, rows, LIVE.__getitem__)
    refuse_empty(left, x_RV, rows)
    token_R = left.draw([row.key for row in rows], [row.t for row in rows])
    chain.observe(observations, rows, token_R)
    assert not any(row.fault for row in rows), [row.fault for row in rows if row.fault]
    assert torch.equal(x_RV, before), "the raw logits are nobody's to write to"
    return left, token_R, [row.sampler_state for row in rows]


def _check(chains, monkeypatch) -> int:
    """How many rows were narrow at the end."""
    x_RV = _logits(len(chains))
    found = _step(x_RV, _rows(chains))
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "SMALL", SIZE)
        whole = _step(x_RV, _rows(chains))
    assert not whole[0].few
    assert torch.equal(found[1], whole[1])
    assert found[2] == whole[2]
    count, kept = len(found[0].few), copy.copy(found[0].few)
    assert torch.equal(found[0].whole(), whole[0].whole())
    assert all(candidates.SHARE * len(one.ids) <= SIZE for one in kept.values())
    return count


def test_mixed_chains_in_one_batch(monkeypatch):
    assert _check(CHAINS * 3, monkeypatch) > len(CHAINS)


@pytest.mark.parametrize("name", sorted(set(LIVE) - INSIDE))
def test_one_chain_for_all(name, monkeypatch):
    for cards in [cards for cards in SINGLE if cards[0].name == name][:4]:
        _check([cards] * 8, monkeypatch)
        _check([(K, *cards)] * 8, monkeypatch) if name not in ("top_k", "greedy") else None


def test_a_row_is_the_same_alone(monkeypatch):
    x_RV, rows = _logits(len(CHAINS)), _rows(CHAINS)
    _, token_R, states = _step(x_RV, rows)
    for r, cards in enumerate(CHAINS):
        (row,) = [row for i, row in enumerate(_rows(CHAINS)) if i == r]
        _, token, state = _step(x_RV[r : r + 1], [row])
        assert int(token) == int(token_R[r]), cards
        assert state == [states[r]]


def test_sums_that_follow_the_width_are_caught(monkeypatch):
    """Twin: the normaliser is torch's, whose order of addition follows the number of columns."""
    plain = torch.logsumexp
    monkeypatch.setattr(chain, "normaliser", lambda x_RC: plain(x_RC, 1).double())
    with pytest.raises(AssertionError):
        _check([(Card("top_k", {"k": 700}), Card("mirostat2"))] * 16, monkeypatch)


def test_nan_and_nothing_left_are_found_in_narrow_rows():
    x_RV = _logits(4)
    x_RV[0, 7], x_RV[1, 7], x_RV[2] = math.nan, math.inf, -math.inf
    for cards in ((K,), (Card("greedy"),), (Card("min_p", {"p": 0.1}),), (P,), (Card("typical", {"p": 0.5}),)):
        rows = _rows([cards] * 4)
        left, _ = chain.shape(x_RV, rows, LIVE.__getitem__)
        refuse_empty(left, x_RV, rows)
        assert [row.fault.kind if row.fault else None for row in rows] == ["BadLogits"] * 3 + [None], cards
        assert "NaN" in rows[0].fault.message


def test_a_draw_among_the_finite_is_the_draw():
    x_RV = _logits(8)
    x_RV[:, torch.rand(SIZE, generator=torch.Generator().manual_seed(2)) < 0.9] = -math.inf
    x_RV[:, 11] = 0.5
    keys, t = [5 * r for r in range(8)], [3] * 8
    left = candidates.Candidates(x_RV)
    left.cut([*range(8)], torch.full((8,), -1e9), None)
    assert len(left.few) == 8
    assert torch.equal(left.draw(keys, t), draw(x_RV, keys, t))
    assert all(np.all(np.diff(one.ids) > 0) for one in left.few.values())
    assert list(itertools.chain(*left.groups([0, 3], any_width=False))) == [0, 3]
    assert set(left.few) == {1, 2, 4, 5, 6, 7}
