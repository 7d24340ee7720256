"""Token Recycling: the table against what the model said, the tree's shape against all rank paths."""

from __future__ import annotations

import itertools
import math

import pytest

from raydecode.conformance import engines
from raydecode.conformance.drive import drive
from raydecode.drafters.token_recycling import RATE, Table, TokenRecycling, template
from raydecode.engine.toy import EOS, ToyEngine, logits
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.tree import TokenTree


@pytest.mark.parametrize(("k", "nodes"), [(8, 12), (8, 30), (2, 6), (1, 5)])
def test_the_tree_is_the_likeliest_set_of_rank_paths(k, nodes):
    paths = [()]
    for parent, rank, rate in template(k, nodes):
        assert rate == RATE[rank]
        paths.append((*paths[parent], rank))
    ranks = range(min(k, 8))
    depths = range(1, 6 if k > 2 else 10)
    everything = sorted(-math.prod(RATE[r] for r in p) for d in depths for p in itertools.product(ranks, repeat=d))
    found = sorted(-math.prod(RATE[r] for r in path) for path in paths[1:])
    assert found == pytest.approx(everything[:nodes])
    assert len(set(paths)) == nodes + 1


def test_a_table_keeps_what_was_said_last():
    table, truth = Table(), {}
    for step in range(200):
        token, followers = (step * 37) % 61, [step % 11, step % 7 + 20, 0]
        table.put(token, followers)
        truth[token] = followers
    assert all([id - 1 for id in table.get(token)] == truth[token] for token in truth)
    assert not any(table.get(2000))
    sparse = Table()
    sparse.put(5, [3, 1])
    assert list(sparse.get(5)) == [4, 2]
    assert not any(sparse.get(4)), "a token never seen has no followers, not token 0"


class Watched(TokenRecycling):
    """Compares each proposal with a table of its own, from the model's own logits after every prompt and path."""

    def __init__(self) -> None:
        self.truth: dict[int, list[int]] = {}
        self.compared = 0
        self.context: dict = {}

    def propose(self, rows, budgets, shared, options):
        trees = yield from super().propose(rows, budgets, shared, options)
        for row, budget, tree in zip(rows, budgets, trees, strict=True):
            self.context[row.id] = row.context
            paths = [()]
            for above, rank, _ in template(options["k"], min(budget, options["nodes"])):
                paths.append(None if paths[above] is None else self._next(row, paths[above], rank))
            expected = TokenTree.paths(row.pending, [path for path in paths if path])
            assert (tree.token, tree.parent) == (expected.token, expected.parent)
            self.compared += len(tree) > 2
        return trees

    def _next(self, row, path, rank):
        end = path[-1] if path else row.pending
        known = self.truth.get(end, ()) if end not in row.ends else ()
        return (*path, known[rank]) if rank < len(known) else None

    def observe(self, records, shared, options):
        for record in records:
            before = self.context[record.row] if record.path else record.tree.token[:1]  # a prompt, read at once
            for node in range(len(record.tree)):
                path = [record.tree.token[one] for one in record.tree.path(node)[1:]]
                said = logits((*before, *path)).topk(options["k"]).indices.tolist()
                self.truth[record.tree.token[node]] = said
        return super().observe(records, shared, options)


@pytest.mark.parametrize(("k", "prompt"), [(1, True), (3, True), (3, False)])
def test_every_verified_node_teaches(k, prompt):
    watched = Watched()
    spec = DecodingSpec(max_tokens=40, seed=2, drafter=Card("token_recycling", {"k": k, "nodes": 7, "prompt": prompt}))
    engine = ToyEngine(given={("drafters", "token_recycling"): watched})
    requests = [Request(str(i), str(i), Ids((i, 0, 1, 2, i, 3)), spec) for i in range(3)]
    run = drive(engine, requests)
    assert all(one.stats.draft_failures == 0 for one in run.outcomes.values())
    assert watched.compared > 10
    assert EOS not in watched.truth or len(watched.truth) <= 5


def test_a_row_of_its_own_starts_fresh():
    """shared: false: what a row drafts does not depend on the rows before it; with a shared table it does."""

    def drafted(shared):
        engine = ToyEngine(slots=1)
        spec = DecodingSpec(
            max_tokens=30, seed=2, ignore_eos=True, drafter=Card("token_recycling", {"shared": shared, "k": 2})
        )
        run = drive(engine, [Request(str(i), "same", Ids((0, 1)), spec) for i in range(2)])
        return [(one.stats.drafted, one.stats.accepted) for _, one in sorted(run.outcomes.items())]

    first, second = drafted(False)
    assert first == second
    first, second = drafted(True)
    assert first != second


def test_size_is_reported():
    spec = DecodingSpec(max_tokens=12, ignore_eos=True, drafter=Card("token_recycling", {"k": 4}))
    (one,) = drive(ToyEngine(), [Request("r", "r", Ids((0, 1)), spec)]).outcomes.values()
    assert 4 * 4 * 4 <= one.stats.drafter_bytes <= 2 * 5 * 4 * 4
    assert one.stats.drafter == "token_recycling"
    assert one.stats.draft_s > 0


class First(TokenRecycling):
    """Writes down how much each row drafts first."""

    def __init__(self) -> None:
        self.size: dict = {}

    def propose(self, rows, budgets, shared, options):
        trees = yield from super().propose(rows, budgets, shared, options)
        for row, tree in zip(rows, trees, strict=True):
            self.size.setdefault(row.id.request, len(tree) - 1)
        return trees


@pytest.mark.parametrize("shared", [True, False])
def test_a_prompt_teaches_before_the_first_draft(shared):
    def first(prompt):
        drafter = First()
        card = Card("token_recycling", {"k": 2, "nodes": 6, "prompt": prompt, "shared": shared})
        spec = DecodingSpec(max_tokens=8, ignore_eos=True, drafter=card)
        engine = ToyEngine(given={("drafters", "token_recycling"): drafter})
        asked = [Request(str(last), str(last), Ids((0, 1, 0, 1, last)), spec) for last in (1, 3)]
        drive(engine, asked[:1])
        return drafter.size["1"], drive(engine, asked[1:]) and drafter.size["3"]

    assert first(False)[0] == 0
    told, strange = first(True)
    assert told > 0
    assert strange == 0 or shared, "3 stands in no prompt but at its end"


def test_a_row_goes_on_from_its_output_alone():
    """State is a cache: after a kill the prompt teaches again, or another row's pages do not, and the text is one."""
    card = Card("token_recycling", {"k": 2, "prompt": True})
    request = Request("r", "r", Ids((0, 1, 3, 2, 1, 0, 0, 2, 3, 1)), DecodingSpec(max_tokens=14, seed=4))
    engines.resume_goes_on(ToyEngine, request, (card, None))
