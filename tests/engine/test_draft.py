"""Trees for rows: budgets, what is known already, what drafters are told. That texts do not change is a law."""

from __future__ import annotations

import pytest

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine.toy import VOCAB, ToyEngine, logits
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from raydecode.tree import TokenTree
from tests.methods import visiting
from tests.methods.drafters import Drafting


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


class Spying(Drafting):
    """Proposes everything, and writes down what it is asked and told."""

    needs = Needs(top_k=3, top_k_nodes="all")

    def __init__(self) -> None:
        self.views, self.budgets, self.records = [], [], []

    def open(self, row, options):
        return ("opened", row.id)

    def tree(self, row, budget, shared):
        self.views.append(row)
        self.budgets.append(budget)
        return TokenTree.paths(row.pending, [(a, b) for a in range(4) for b in range(VOCAB)])

    def observe(self, records, shared, options):
        self.records += records
        return [("after", record.row, len(self.records)) for record in records]


def _run(spy=None, max_tokens=10, **spec):
    spy = spy or Spying()
    with registry.guests():
        registry.register("drafters", engines=("toy",))(Spying)
        engine = ToyEngine(given={("drafters", "spying"): spy})
        spec = DecodingSpec(max_tokens=max_tokens, ignore_eos=True, drafter=Card("spying"), **spec)
        run = drive(engine, [Request("r", "r", Ids((0, 1)), spec)])
    return spy, run.outcomes[RowId("r")]


def test_a_drafter_sees_rows():
    spy, outcome = _run()
    assert spy.views[0].state == ("opened", RowId("r")) or spy.views[0].state is None
    for view in spy.views:
        assert view.context == (0, 1, *outcome.tokens[: view.t])
        assert (view.pending, view.prompt_len, view.max_new) == (view.context[-1], 2, 10 - view.t)
    assert [view.state[0] for view in spy.views[1:]] == ["after"] * (len(spy.views) - 1)


def test_budgets_end_with_the_row():
    spy, outcome = _run()
    assert all(budget == min(16, 10 - view.t - 1) for view, budget in zip(spy.views, spy.budgets, strict=True))
    assert all(len(record.tree) <= budget + 1 for record, budget in zip(spy.records, spy.budgets, strict=False))
    assert len(outcome.tokens) == 10


def test_records_tell_every_verified_node():
    spy, outcome = _run()
    told = [token for record in spy.records for token in record.emitted]
    assert tuple(told) == outcome.tokens
    for record, view in zip(spy.records, spy.views, strict=False):
        assert set(record.top_ids) == set(range(len(record.tree)))
        for node, ids in record.top_ids.items():
            context = (*view.context[:-1], *(record.tree.token[n] for n in record.tree.path(node)))
            assert list(ids) == logits(context).topk(3).indices.tolist()


def test_accepted_nodes_only_if_that_is_all_it_needs():
    spy = Spying()
    spy.needs = Needs(top_k=1)
    _run(spy)
    assert all(set(record.top_ids) == set(record.path) for record in spy.records)


def test_no_draft_for_the_last_token():
    spy, outcome = _run(max_tokens=1)
    assert spy.views == []
    assert outcome.stats.drafted == 0


def test_hints_are_drafted_and_bind_nobody():
    def run(monitors):
        spec = DecodingSpec(max_tokens=40, seed=1, ignore_eos=True, monitors=monitors)
        return drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), spec)]).outcomes[RowId("r")]

    plain, hinted = run(()), run((Card("hinting"),))
    assert hinted.tokens == plain.tokens
    assert hinted.stats.forwards < plain.stats.forwards


def test_known_tokens_go_before_drafts():
    """A replay is one chain: 20 delivered ids cost two forwards, whatever the drafter says."""
    first = drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), DecodingSpec(max_tokens=21, ignore_eos=True))])
    tokens = first.outcomes[RowId("r")].tokens
    spec = DecodingSpec(max_tokens=21, ignore_eos=True, drafter=Card("hostile"))
    again = drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), spec, resume=tokens[:20])]).outcomes[RowId("r")]
    assert again.tokens == tokens
    assert again.stats.forwards == 1, "20 given ids and the next token come from one forward"
