"""Trees for rows: budgets, what is known already, what drafters are told. That texts do not change is a law."""

from __future__ import annotations

import pytest

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine import draft, schedule
from raydecode.engine.cost import CostCurve
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
    again = drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), spec, resume=(tokens[:20],))]).outcomes[RowId("r")]
    assert again.tokens == tokens
    assert again.stats.forwards == 1, "20 given ids and the next token come from one forward"


# ---------------------------------------------------------------------------------------------- what prompts teach
LONG = (0, 1, 3, 2, 1, 0, 0, 2, 3, 1, 0, 1, 1, 2, 0, 3, 2, 0, 1)


class Reading(Spying):
    """Wants to know what the model said inside prompts."""

    needs = Needs(top_k=3, top_k_nodes="all", prompt=True)

    def told(self, prompts):
        """(row, place in its prompt) -> ids; checked against the model, text by text."""
        found, at = {}, {}
        for record in self.records:
            if record.path or record.emitted:
                continue
            prompt, begin = prompts[record.row.request], at.get(record.row, 0)
            while tuple(record.tree.token) != prompt[begin : begin + len(record.tree)]:
                begin += 1  # what another row had read
            assert record.tree.parent == tuple(range(-1, len(record.tree) - 1))
            at[record.row] = begin + len(record.tree)
            for node, ids in record.top_ids.items():
                assert list(ids) == logits(prompt[: begin + node + 1]).topk(3).indices.tolist()
                assert (record.row, begin + node) not in found
                found[record.row, begin + node] = ids
        return found


def _read(prompts, drafter="reading", max_tokens=6, **engine):
    """The spy, the run, and all chunks of all calls."""
    spy, chunks = Reading(), []
    with registry.guests():
        registry.register("drafters", engines=("toy",))(Reading)
        registry.register("drafters", engines=("toy",))(Spying)
        made = ToyEngine(given={("drafters", "reading"): spy}, **engine)
        forward = made.lane.forward
        made.lane.forward = lambda some, *more: (chunks.append(some), forward(some, *more))[1]
        asks = [
            DecodingSpec(max_tokens=max_tokens, ignore_eos=True, drafter=Card(name) if isinstance(name, str) else name)
            for name in ([drafter] * len(prompts) if isinstance(drafter, str) else drafter)
        ]
        pairs = zip(prompts.items(), asks, strict=True)
        run = drive(made, [Request(id, id, Ids(ids), ask) for (id, ids), ask in pairs])
    return spy, run, chunks


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_prompts_are_told_token_by_token(chunk):
    prompts = {"a": LONG, "b": (2,), "c": (3, 3)}
    spy, run, _ = _read(prompts, chunk=chunk)
    rows = {row: len(prompts[row.request]) - 1 for row in run.outcomes}
    assert set(spy.told(prompts)) == {(row, at) for row, count in rows.items() for at in range(count)}
    assert all(one.stats.draft_failures == 0 for one in run.outcomes.values())
    _, plain, _ = _read(prompts, drafter=(None, None, None))
    assert {row: one.tokens for row, one in run.outcomes.items()} == {r: o.tokens for r, o in plain.outcomes.items()}


def test_logits_of_a_neighbour_are_caught(monkeypatch):
    honest = draft.Drafters.observe
    monkeypatch.setattr(draft.Drafters, "observe", lambda self, *given: honest(self, *given[:-1], given[-1] - 1))
    prompts = {"a": LONG}
    spy, _, _ = _read(prompts)
    with pytest.raises(AssertionError):
        spy.told(prompts)


def test_prompts_of_rows_that_do_not_ask_have_no_logits():
    prompts = {"asks": LONG, "drafts": LONG[::-1], "plain": LONG[3:]}
    _, _, chunks = _read(prompts, drafter=("reading", "spying", None), chunk=4)
    trees = dict.fromkeys(range(3), 0)
    for chunk in (chunk for call in chunks for chunk in call):
        inside = chunk.start + len(chunk) < len(list(prompts.values())[chunk.slot])
        trees[chunk.slot] += inside and chunk.tree is not None
    assert trees[0] > 0
    assert not trees[1]
    assert not trees[2]


def test_few_logits_of_prompts_at_once(monkeypatch):
    monkeypatch.setattr(schedule, "TOLD", 4)
    prompts = {"a": LONG, "b": LONG[::-1], "c": LONG[5:]}
    spy, _, chunks = _read(prompts)
    assert len(spy.told(prompts)) == sum(len(ids) - 1 for ids in prompts.values())
    before = {slot: len(ids) - 1 for slot, ids in enumerate(prompts.values())}
    sizes = [sum(len(c.tree) for c in call if c.tree and c.start + len(c.tree) <= before[c.slot]) for call in chunks]
    assert max(sizes) <= 4


def test_what_another_row_read_is_not_told_again():
    prompts = {"a": LONG, "b": (*LONG[:16], 1, 1, 1, 2)}
    spy, run, _ = _read(prompts)
    told = spy.told(prompts)
    shared = sum(one.stats.cached_tokens for one in run.outcomes.values())
    assert shared >= 8
    assert len(told) == sum(len(ids) - 1 for ids in prompts.values()) - shared


def test_a_row_that_gave_way_is_not_told_twice():
    prompts = {str(i): (i % 4, *LONG) for i in range(4)}
    spy, run, _ = _read(prompts, max_tokens=24, context=48, tokens=80)
    assert sum(one.stats.preempted for one in run.outcomes.values()) > 0
    spy.told(prompts)
    _, plain, _ = _read(prompts, drafter=[None] * 4, max_tokens=24)
    assert {row: one.tokens for row, one in run.outcomes.items()} == {r: o.tokens for r, o in plain.outcomes.items()}


@pytest.mark.parametrize(("told_s", "heard"), [(0.0, True), (0.01, True), (1000.0, False)])
def test_under_auto_prompts_are_told_where_their_logits_are_affordable(told_s, heard):
    curve = CostCurve((1, 2), (1.0, 1.02), fixed=True, told_s=told_s)
    prompts = {"a": LONG, "b": LONG[::-1]}
    auto = Card("auto", {"among": ["reading"]})
    spy, run, chunks = _read(prompts, drafter=[auto, auto], curve=curve)
    told = spy.told(prompts)
    assert len(told) == (sum(len(ids) - 1 for ids in prompts.values()) if heard else 0)
    inside = [c for call in chunks for c in call if c.tree and c.start + len(c) < len(LONG)]
    assert bool(inside) == heard, "no logits where nobody is told"
    _, plain, _ = _read(prompts, drafter=[None, None])
    assert {row: one.tokens for row, one in run.outcomes.items()} == {r: o.tokens for r, o in plain.outcomes.items()}
