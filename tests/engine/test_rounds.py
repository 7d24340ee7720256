"""Drafters' forwards: what comes back is what the lane says there, made together, and never seen by verification."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.contracts import Forward, Needs, NodeOut
from raydecode.engine import rounds
from raydecode.engine.lane import Chunk
from raydecode.engine.toy import VOCAB, ToyEngine, ToyLane, logits
from raydecode.randomness import gumbel
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.tree import TokenTree
from tests.methods import visiting
from tests.methods.drafters import Drafting

SKIP = frozenset({"attention.1", "mlp.2", "mlp.0"})
PATHS = ((), (0,), (0, 1), (0, 1, 2), (1,), (0, 3), (2, 2, 2, 2))


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


class Asking(Drafting):
    """Asks `wishes(row, round)` and writes down (row's view, path, answer)."""

    needs = Needs(lanes=("self", "toy"))

    def __init__(self, *rounds):
        self.rounds, self.answers = rounds, []

    def propose(self, rows, budgets, shared, options):
        for wish in self.rounds:
            deep = min(row.max_new for row in rows)
            items = tuple((row.id, path) for row in rows for path in wish.get("paths", ((),)) if len(path) < deep)
            if not items:
                continue
            given = {key: value for key, value in wish.items() if key != "paths"}
            outs = yield Forward(items=items, **({"lane": "self"} | given))
            views = {row.id: row for row in rows}
            self.answers += [(wish, views[id], path, out) for (id, path), out in zip(items, outs, strict=True)]
        return [TokenTree.root(row.pending) for row in rows]


def asked(*wishes, requests=None, engine=None, **spec):
    """(wish, row's view, path, answer) of every item."""
    asking = Asking(*wishes)
    with registry.guests():
        registry.register("drafters", engines=("toy",))(Asking)
        engine = engine or ToyEngine(given={("drafters", "asking"): asking})
        engine._live["drafters", "asking"] = asking
        spec = {"max_tokens": 12, "seed": 4, "ignore_eos": True} | spec
        given = requests or [Request(f"r{i}", f"n{i}", Ids((i, 0, 1, 3)), DecodingSpec()) for i in range(3)]
        run = drive(
            engine, [Request(r.id, r.noise_id, r.prompt, DecodingSpec(**spec, drafter=Card("asking"))) for r in given]
        )
    assert all(one.stats.draft_failures == 0 and not one.error for one in run.outcomes.values())
    assert asking.answers
    return asking.answers, run


def same(out: NodeOut, x_V: torch.Tensor, k: int) -> bool:
    top = x_V.log_softmax(0).topk(k)
    close = torch.allclose(torch.tensor(out.top_logp), top.values, atol=1e-5)
    return close and out.top_ids == tuple(top.indices.tolist())


@pytest.mark.parametrize("skip", [frozenset(), SKIP], ids=["whole", "part"])
def test_self_says_what_the_model_says_at_each_path(skip):
    answers, _ = asked({"paths": PATHS, "skip": skip, "top_k": 3})
    assert len(answers) > 100
    assert all(same(out, logits((*row.context, *path), skip), 3) for _, row, path, out in answers)


def test_rounds_go_on_where_the_last_one_ended():
    """Chains, branches from the middle, another set of blocks in between, and back."""
    wishes = [
        {"paths": ((0,),), "skip": SKIP}, {"paths": ((0, 1),), "skip": SKIP},
        {"paths": ((0, 1, 2), (0, 1, 3)), "skip": SKIP},
        {"paths": ((0, 2), (1,))}, {"paths": ((0, 1, 2),), "skip": SKIP}, {"paths": ((0, 1, 3, 0),), "skip": SKIP},
    ]  # fmt: skip
    answers, _ = asked(*wishes)
    for wish, row, path, out in answers:
        assert same(out, logits((*row.context, *path), wish.get("skip", frozenset())), 1)


def test_nothing_is_fed_twice():
    """A chain of n rounds costs n tokens."""
    fed = []
    engine = ToyEngine(slots=1)
    forward = engine.lane.forward
    engine.lane.forward = lambda chunks, *rest: (fed.append(sum(map(len, chunks))), forward(chunks, *rest))[1]
    asked(
        *({"paths": ((0, 1, 2, 3)[:n],), "skip": SKIP} for n in range(5)), engine=engine,
        requests=[Request("r", "r", Ids((0, 1)), DecodingSpec())],
    )  # fmt: skip
    assert fed[0] == 2
    assert set(fed[1:]) == {1}
    assert len(fed) > 50


def test_further_lanes_follow_the_text():
    """A model of its own: equal to a lane that is fed the whole context, after every acceptance and rejection."""
    answers, _ = asked({"lane": "toy", "paths": PATHS, "top_k": 3}, {"lane": "toy", "paths": ((0, 1, 2, 0),)})
    lane = ToyLane(1, 64, blur=0.25)
    for wish, row, path, out in answers:
        ids = (*row.context, *path)
        lane.release(0)
        assert lane.reserve(0, 0, len(ids))
        x = lane.forward([Chunk(0, 0, ids[:-1], TokenTree.root(ids[-1]))], Needs()).logits_MV[0]
        assert same(out, x, wish.get("top_k", 1))


def test_a_window_says_what_would_have_been_said():
    answers, _ = asked({"window": 5, "skip": SKIP, "top_k": 2})
    for _, row, _, out in answers:
        count = min(5, len(row.context) - 1)
        assert len(out.window) == count
        for i, one in enumerate(out.window):
            assert same(one, logits(row.context[: len(row.context) - count + i], SKIP), 2)


CHAINS = [
    (Card("greedy"),),
    (Card("temperature", {"value": 1.3}), Card("top_p", {"p": 0.9})),
    (Card("repetition_penalty", {"value": 1.4}), Card("temperature", {"value": 0.9})),
    (Card("temperature", {"value": 1.3}), Card("mirostat2", {"tau": 0.8, "eta": 0.5})),
]


class Oracle(Drafting):
    """Drafts what the row would choose on its own whole model."""

    needs = Needs(lanes=("self",))

    def propose(self, rows, budgets, shared, options):
        paths = [[] for _ in rows]
        for _ in range(3):
            outs = yield Forward("self", tuple((r.id, tuple(p)) for r, p in zip(rows, paths, strict=True)), choose=1)
            for row, path, out in zip(rows, paths, outs, strict=True):
                if out.choice and len(path) < row.max_new - 1 and not {*path} & row.ends:
                    path += out.choice
        return [TokenTree.chain((row.pending, *path)) for row, path in zip(rows, paths, strict=True)]


@pytest.mark.parametrize("monitors", [(), (Card("bad_word"), Card("bias_a"))], ids=["free", "watched"])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[-1].name)
def test_choices_on_the_whole_model_are_always_kept(chain, monitors):
    """Chain, constraint, states along the path and noise are the row's own: then nothing is ever rejected."""
    with registry.guests():
        registry.register("drafters", engines=("toy",))(Oracle)
        spec = DecodingSpec(max_tokens=25, seed=3, sampler=chain, monitors=monitors, drafter=Card("oracle"))
        run = drive(ToyEngine(), [Request(f"r{i}", f"n{i}", Ids((0, 1, i)), spec) for i in range(4)])
    for one in run.outcomes.values():
        assert one.stats.draft_failures == 0
        over = 3 if one.reason in ("eos", "stop", "monitor") else 0  # drafted behind the last token
        assert one.stats.accepted + over >= one.stats.drafted
        assert one.stats.drafted or len(one.tokens) < 2


def test_choices_are_the_likeliest_under_the_rows_noise():
    answers, _ = asked({"choose": 3, "paths": ((), (1, 0))})
    for _, row, path, out in answers:
        request = Request(row.id.request, f"n{row.id.request[1:]}", Ids(()), DecodingSpec(seed=4))
        noise = gumbel([request.noise_key(0)], [row.t + len(path)], VOCAB)[0]
        assert out.choice == tuple((logits((*row.context, *path)) + noise).topk(3).indices.tolist())


def test_wishes_of_all_groups_are_one_call_per_lane_and_round():
    calls = []
    with registry.guests():
        registry.register("drafters", engines=("toy",), name="one")(type("One", (Asking,), {}))
        registry.register("drafters", engines=("toy",), name="two")(type("Two", (Asking,), {}))
        wishes = [{"skip": SKIP}, {"skip": SKIP, "paths": ((1,),)}]
        engine = ToyEngine(given={("drafters", name): Asking(*wishes) for name in ("one", "two")})
        forward = engine.lane.forward
        engine.lane.forward = lambda chunks, *rest: (calls.append(len(chunks)), forward(chunks, *rest))[1]
        specs = [DecodingSpec(max_tokens=4, ignore_eos=True, drafter=Card(name)) for name in ("one", "two")]
        drive(engine, [Request(str(i), str(i), Ids((0, 1)), specs[i % 2]) for i in range(6)])
    assert calls == [6, *[6, 6, 6] * 2, 6], "read; two rounds and verification; the last token is not drafted for"


@pytest.mark.parametrize("kind", ["reads the draft", "window in place"])
def test_twins_that_let_verification_read_a_draft_are_caught(kind, monkeypatch):
    """Without the fork a window overwrites committed columns; without rewriting, verification reads scratch ones."""
    from raydecode.conformance import Violation, drafters

    if kind == "window in place":
        make = rounds.Rounds._window

        def in_place(self, one, row, item, asked):
            feed = make(self, one, row, item, asked)
            self.lane.release(feed.chunk.slot)
            feed.chunk = type(feed.chunk)(
                row.slot, *[getattr(feed.chunk, name) for name in ("start", "prefix", "tree")]
            )
            feed.track = rounds.Track(row.id)
            feed.ends = []
            return feed

        monkeypatch.setattr(rounds.Rounds, "_window", in_place)
    else:
        discard = ToyLane.forward

        def keeping(self, chunks, needs, hooks=(), skip=frozenset()):
            before = dict(self._cell), set(self._partial)
            out = discard(self, chunks, needs, hooks, skip)
            if not skip:  # columns that a draft wrote stay what they are
                self._cell |= {where: before[0][where] for where in before[1] if where in before[0]}
                self._partial |= before[1]
            return out

        monkeypatch.setattr(ToyLane, "forward", keeping)
    method = registry.get("drafters", "ghostwriter")
    with pytest.raises((Violation, AssertionError)):
        drafters.text_is_plain(method)


def test_rows_that_still_read_do_not_draft_on_self():
    answers, _ = asked({"skip": SKIP}, engine=ToyEngine(chunk=2))
    assert all(row.t > 0 for _, row, _, _ in answers)


def test_a_lagging_lane_reads_in_chunks():
    """The prompt is longer than a chunk: no draft until the lane has read it, and then the right one."""
    long = Request("r", "n0", Ids((0, 1, 2, 3) * 10), DecodingSpec())
    answers, _ = asked({"lane": "toy"}, requests=[long], engine=ToyEngine(slots=1, chunk=7), max_tokens=9)
    assert 0 < len(answers) < 9
    lane = ToyLane(1, 64, blur=0.25)
    _, row, _, out = answers[-1]
    assert lane.reserve(0, 0, len(row.context))
    tree = TokenTree.root(row.pending)
    assert same(out, lane.forward([Chunk(0, 0, row.context[:-1], tree)], Needs()).logits_MV[0], 1)


def test_short_memory_means_no_draft_and_no_failure():
    """A lane with room for one row: the others' caches go, and texts are what they are."""
    lanes = {"toy": ToyLane(4, 64, tokens=64, blur=0.25)}
    spec = DecodingSpec(max_tokens=30, ignore_eos=True)
    card = Card("draft_model", {"model": "toy", "confidence": 0.0})
    requests = [Request(str(i), str(i), Ids((i % 4, 0, 1) * 8), spec) for i in range(8)]
    drafted = [dataclasses.replace(one, decoding=dataclasses.replace(spec, drafter=card)) for one in requests]
    plain, run = drive(ToyEngine(slots=4), requests), drive(ToyEngine(slots=4, context=64, lanes=lanes), drafted)
    assert plain.difference(run) is None
    assert 0 < sum(one.stats.drafted for one in run.outcomes.values()) < 8 * 25
    assert all(one.stats.draft_failures == 0 for one in run.outcomes.values())
    lanes["toy"].check([])


def test_a_lane_that_is_not_loaded_is_refused():
    spec = DecodingSpec(drafter=Card("draft_model", {"model": "elsewhere"}))
    refused = ToyEngine().refuse(spec)
    assert refused
    assert (refused.field, refused.value) == ("decoding.drafter", "elsewhere")
    assert "roster" in str(refused)
    assert ToyEngine().refuse(DecodingSpec(drafter=Card("draft_model", {"model": "toy"}))) is None
