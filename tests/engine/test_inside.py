"""Hidden states and interventions through the loop, on the toy model: everyone gets what he asked for and no more."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine import loop, toy
from raydecode.engine.loop import Loop
from raydecode.engine.toy import ToyEngine, ToyLane, logits
from raydecode.errors import Refused
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from raydecode.tree import TokenTree
from tests.methods import visiting
from tests.methods.drafters import Drafting
from tests.methods.monitors import Watching

PUSH = Card("push", {"site": "layer.1", "strength": 1.5, "start": 0})


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


def ask(id: str, prompt: tuple[int, ...] = (0, 1, 2), **spec) -> Request:
    return Request(id, id, Ids(prompt), DecodingSpec(max_tokens=12, ignore_eos=True, **spec))


class Seeing(ToyLane):
    """Writes down what each forward was asked for."""

    def __init__(self, slots: int = 8, context: int = 256) -> None:
        super().__init__(slots, context)
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def forward(self, chunks, needs, hooks=()):
        out = super().forward(chunks, needs, hooks)
        self.asked.append((needs.hidden, len(hooks)))
        assert set(out.hidden) == set(needs.hidden)
        return out


class SeeingLoop(Loop):
    name = "toy"


MIXED = [
    ask("plain"), ask("plain 2", (1, 1)), ask("pushed", interventions=(PUSH,)),
    ask("less", interventions=(Card("push", {"site": "layer.1", "strength": -0.5, "start": 4}),)),
    ask("both", interventions=(Card("by_path", {"site": "embedding"}), PUSH), drafter=Card("random_paths")),
    ask("drafted", interventions=(PUSH,), drafter=Card("random_paths")),
    ask("samples", interventions=(PUSH,), n=3), ask("plain drafted", drafter=Card("recycling")),
]  # fmt: skip


def test_rows_keep_their_texts_beside_interventions():
    """Alone, together, backwards, in small chunks, with few slots: the same tokens for each row."""
    alone = [drive(ToyEngine(slots=1), [request]) for request in MIXED]
    outcomes = {row: one for run in alone for row, one in run.outcomes.items()}
    for slots, chunk, order in ((16, 512, 1), (16, 2, -1), (3, 4, 1)):
        together = drive(ToyEngine(slots=slots, chunk=chunk), MIXED[::order])
        assert together.outcomes == outcomes
    undrafted = [dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, drafter=None)) for r in MIXED]
    assert drive(ToyEngine(slots=16), undrafted).outcomes == outcomes
    texts = {row.request: one.tokens for row, one in outcomes.items() if row.sample == 0}
    assert len(set(texts.values())) == len(texts), "every intervention changed its text"


def test_a_row_resumes_with_its_intervention():
    for request in MIXED[2:5]:
        whole = drive(ToyEngine(), [request]).outcomes[RowId(request.id)]
        for cut in (1, 5, 11):
            again = drive(ToyEngine(), [dataclasses.replace(request, resume=(whole.tokens[:cut],))])
            outcome = again.outcomes[RowId(request.id)]
            assert outcome == whole
            assert outcome.stats.replay_mismatches == 0


def test_equal_interventions_share_a_beginning_and_others_do_not():
    """The text is what it is alone; the prompt's pages are read once per kind of intervention."""
    long = tuple(i % 4 for i in range(3 * toy.PAGE + 2))
    other = Card("push", {"site": "layer.1", "strength": -0.5, "start": 0})
    kinds = {"plain": (), "pushed": (PUSH,), "other": (other,)}
    asked = [ask(f"{name} {i}", long, interventions=cards) for i in range(2) for name, cards in kinds.items()]
    alone = {row: one for r in asked for row, one in drive(ToyEngine(), [r]).outcomes.items()}
    engine = ToyEngine(slots=1)
    outcomes = drive(engine, asked).outcomes
    assert outcomes == alone
    cached = [outcomes[RowId(r.id)].stats.cached_tokens for r in asked]
    assert cached == [0, 0, 0, *[3 * toy.PAGE] * 3]


class Deepest(Drafting):
    """Wants the last layer's states, whatever the depth, and of the three likeliest at each node."""

    seen: list = []

    @staticmethod
    def needs_of(options, sites):
        layers = [site for site in sites if site.startswith("layer.")]
        return Needs(hidden=(layers[-1],), hidden_nodes="accepted", top_k=3)

    def observe(self, records, shared, options):
        self.seen += records
        return [None for _ in records]


def test_a_drafters_needs_are_asked_with_all_the_sites_of_the_model():
    """Also beside a row for whom another site is read: the sites of the call are not those of the model."""
    registry.register("drafters", name="deepest", engines=("toy",))(Deepest)
    registry.register("monitors", name="reader")(Reader)
    Deepest.seen = []
    run = drive(ToyEngine(), [ask("d", drafter=Card("deepest")), ask("r", monitors=(Card("reader"),))])
    assert run.outcomes[RowId("d")].stats.draft_failures == 0
    assert {tuple(states) for one in Deepest.seen for states in one.hidden.values()} == {(f"layer.{toy.DEPTH - 1}",)}
    assert {len(ids) for one in Deepest.seen for ids in one.top_ids.values()} == {3}


def test_nothing_is_computed_that_no_row_asked_for():
    lane = Seeing()
    drive(SeeingLoop(lane), [ask("a"), ask("b", drafter=Card("recycling"))])
    assert set(lane.asked) == {((), 0)}
    lane = Seeing()
    drive(SeeingLoop(lane), [ask("a", interventions=(PUSH,)), ask("b", interventions=(PUSH,))])
    assert set(lane.asked) == {((), 1)}, "rows with equal cards share a call"


class Reader(Watching):
    """A monitor that reads a site."""

    needs = Needs(hidden=("layer.1", "final"))

    def observe(self, state, event):
        return (*state, event.hidden["final"].tolist(), event.hidden["layer.1"].tolist())

    def open(self, request, host, options):
        return ()

    def close(self, state, outcome):
        return state


def test_a_monitor_sees_the_node_that_chose_the_token():
    registry.register("monitors", name="reader")(Reader)
    lane = Seeing()
    run = drive(SeeingLoop(lane), [ask("r", monitors=(Card("reader"),), drafter=Card("recycling")), ask("other")])
    outcome = run.outcomes[RowId("r")]
    (report,) = outcome.reports
    for t in range(12):
        context = (0, 1, 2, *outcome.tokens[:t])
        assert torch.equal(toy._logits(torch.tensor([report[2 * t]]))[0], logits(context))
        assert report[2 * t] != report[2 * t + 1]
    assert run.outcomes[RowId("other")].tokens == drive(ToyEngine(), [ask("other")]).outcomes[RowId("other")].tokens
    assert {hidden for hidden, _ in lane.asked} == {("final", "layer.1"), ()}, "nothing once the reader has ended"


@pytest.mark.parametrize("nodes", ["tail", "accepted", "all"])
def test_a_drafter_gets_the_nodes_it_named(nodes):
    seen = []

    class Hungry(Drafting):
        """Writes down records and views."""

        needs = Needs(hidden=("final",), hidden_nodes=nodes)

        def tree(self, row, budget, shared):
            seen.append(row)
            return TokenTree.paths(row.pending, [(1, 2), (0,), (2, 3)])

        def observe(self, records, shared, options):
            seen.extend(records)
            return [None] * len(records)

    registry.register("drafters", name="hungry")(Hungry)
    outcome = drive(ToyEngine(), [ask("h", drafter=Card("hungry"))]).outcomes[RowId("h")]
    assert outcome.stats.draft_failures == 0
    records = [one for one in seen if hasattr(one, "path")]
    wanted = {
        "tail": lambda r: set(r.path[-1:]),
        "accepted": lambda r: set(r.path),
        "all": lambda r: set(range(len(r.tree))),
    }
    for record in records:
        assert set(record.hidden) == wanted[nodes](record)
    for before, after in itertools.pairwise(seen):
        if hasattr(before, "path") and hasattr(after, "context"):
            assert torch.equal(after.hidden["final"], before.hidden[before.path[-1]]["final"])
            assert torch.equal(toy._logits(after.hidden["final"][None])[0], logits(after.context[:-1]))


def test_a_horizon_bounds_what_is_verified_at_once():
    run = drive(ToyEngine(stream=True), [ask("b", interventions=(Card("by_path"),), drafter=Card("constant"))])
    assert run.outcomes[RowId("b")].stats.drafted > 0
    engine = ToyEngine(stream=True)
    engine.submit(ask("b", interventions=(Card("by_path"),), drafter=Card("constant")))
    steps = [event for _ in range(20) for event in engine.step() if hasattr(event, "tree")]
    assert max(max(step.tree.depth()) for step in steps) == 1


def test_an_intervention_that_raises_ends_its_row_only():
    bad = Card("raising", {"strength": 1.0, "site": "layer.0"})
    rows = [ask("a", (0, 1), interventions=(bad,)), ask("b", (3, 1), interventions=(bad,)), ask("c", (3, 1))]
    found = drive(ToyEngine(), rows).outcomes
    assert (found[RowId("b")].error.stage, found[RowId("b")].error.kind) == ("intervention", "RuntimeError")
    assert found[RowId("a")] == drive(ToyEngine(), rows[:1]).outcomes[RowId("a")]
    assert found[RowId("c")] == drive(ToyEngine(), rows[2:]).outcomes[RowId("c")]


@pytest.mark.parametrize(("site", "near"), [("layer.7", "layer.2"), ("finel", "final"), ("hidden", None)])
def test_a_site_that_is_not_there_is_refused_with_the_nearest(site, near):
    spec = DecodingSpec(interventions=(Card("push", {"site": site}),))
    refused = ToyEngine().refuse(spec)
    assert isinstance(refused, Refused)
    assert site in refused.message
    assert refused.field == "decoding.interventions"
    assert near is None or refused.nearest in (near, "layer.0", "layer.1", "layer.2")
    assert "layer.0" in refused.hint
    outcome = drive(ToyEngine(), [Request("x", "x", Ids((1,)), spec)]).outcomes[RowId("x")]
    assert outcome.error.kind == "Refused"


def test_a_forgotten_hook_shows(monkeypatch):
    """Twin: the prompt is read without the intervention; texts of rows that have one change."""
    made = loop.hooks
    monkeypatch.setattr(loop, "hooks", lambda chunks, *rest: made([c for c in chunks if c.tree], *rest))
    row = ask("x", (1,) * 26, interventions=(Card("by_path", {"site": "embedding"}),), logprobs=1)
    broken = drive(ToyEngine(chunk=8), [row]).outcomes
    monkeypatch.undo()
    assert broken != drive(ToyEngine(chunk=8), [row]).outcomes


def test_undeclared_needs_are_not_served():
    """A history that was not asked for is the row's fault; an own logp that was not asked for is NaN."""
    outcome = drive(ToyEngine(), [ask("s", sampler=(Card("snooping"),))]).outcomes[RowId("s")]
    assert (outcome.error.kind, "Needs(history=True)" in outcome.error.message) == ("NotDeclared", True)

    class Careless(type(registry.get("samplers", "mirostat_like").factory())):
        """Mirostat that forgot to say what it needs."""

        needs = Needs()

    careless = Careless()
    engine = ToyEngine(given={("samplers", "mirostat_like"): careless})
    row = ask("m", sampler=(Card("mirostat_like", {"tau": 1.2, "eta": 0.5}),))
    seen = []
    observe = careless.observe
    careless.observe = lambda rows, token_R, own_logp_R: seen.append(own_logp_R) or observe(rows, token_R, own_logp_R)
    drive(engine, [row])
    assert seen
    assert all(own_logp_R.isnan().all() for own_logp_R in seen)
