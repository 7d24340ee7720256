"""Drafters on rows of vLLM's batch: what they are told and what they offer, whatever vLLM makes of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from raydecode import registry
from raydecode.engine.vllm import draft
from raydecode.engine.vllm.draft import Drafted, DraftRows, best_path, verified
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.methods import visiting
from tests.methods.drafters import Drafting

V, BUDGET = 40, 6
PERIOD = (5, 6, 7, 8, 9, 7, 8, 11)
HOSTED = [method.name for method in registry.cards("drafters") if "vllm" in method.engines]


class Recorder(Drafting):
    """Keeps what it is told, and drafts the next tokens of the period, the last one wrong."""

    seen: list = []
    opened = 0

    def open(self, row, options):
        Recorder.opened = len(row.context)
        return 0

    def tree(self, row, budget, shared):
        ahead = itertools.islice(itertools.cycle(PERIOD), row.t + row.prompt_len, None)
        return TokenTree.chain((row.pending, *itertools.islice(ahead, budget - 1), V - 1))

    def observe(self, records, shared, options):
        self.seen += [(one.tree.token[0], one.path, one.emitted) for one in records]
        return [record.state for record in records]


@pytest.fixture(autouse=True)
def guests() -> Iterator[None]:
    Recorder.seen = []
    with visiting(honest_only=False):
        registry.register("drafters", name="recorder")(Recorder)
        yield


def text(length: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(PERIOD), length))


def decode(rows: DraftRows, id: str, card: Card, *, limit: int = 40, dice: random.Random | None = None) -> list[list]:
    """The drafts of a row whose text is the period, from a prompt of ten tokens on. dice: vLLM trims or skips some."""
    whole, at, drafts = text(10 + limit), 11, []
    asked = draft.wire(id, card, 10, limit)
    while at < len(whole):
        if dice and dice.random() < 0.2:
            offered: list[int] = []
        else:
            (offered,) = rows.propose([asked], [whole[:at]], [()])
            drafts.append(offered)
            assert len(offered) <= min(BUDGET, 10 + limit - at - 1)
        if dice:
            offered = offered[: dice.randrange(BUDGET)]
        right = 0
        while right < len(offered) and whole[at + right] == offered[right]:
            right += 1
        at += right + 1
    return drafts


def card(name: str) -> Card:
    return registry.get("drafters", name).parse(Card(name), "drafter")


def test_who_runs_inside_vllm() -> None:
    assert {"aded", "ngram", "suffix"} <= set(HOSTED)
    assert "token_recycling" not in HOSTED, "it needs top-k of the model"


@pytest.mark.parametrize("name", ["aded", "ngram", "suffix"])
def test_they_draft_a_text_that_repeats(name: str) -> None:
    drafts = decode(DraftRows(BUDGET, V, 8), "r", card(name))
    assert len(drafts) < 30
    assert any(drafts)


@pytest.mark.parametrize("seed", range(3))
def test_a_drafter_is_told_every_token_once_and_what_was_accepted(seed: int) -> None:
    decode(DraftRows(BUDGET, V, 8), "r", card("recorder"), dice=random.Random(seed))
    told = [token for _, _, emitted in Recorder.seen for token in emitted]
    assert told == text(Recorder.opened + len(told))[Recorder.opened :]
    assert all(len(path) == len(emitted) for _, path, emitted in Recorder.seen)
    assert any(len(emitted) > 1 for _, _, emitted in Recorder.seen)
    follows = itertools.pairwise(Recorder.seen)
    assert all(root == emitted[-1] for (_, _, emitted), (root, _, _) in follows)


def test_steps_are_read_off_the_text() -> None:
    offered = TokenTree.chain((1, 2, 3, 4))
    assert verified(1, offered, [2, 3, 9]) == [(offered, (0, 1, 2), (2, 3, 9))]
    assert verified(1, offered, [2, 3, 4, 5]) == [(offered, (0, 1, 2, 3), (2, 3, 4, 5))]
    assert verified(1, offered, [2]) == [(offered, (0,), (2,))], "vLLM left the draft out"
    assert verified(1, offered, [9, 8]) == [(offered, (0,), (9,)), (TokenTree.root(9), (0,), (8,))]
    assert verified(1, None, [2]) == [(TokenTree.root(1), (0,), (2,))]
    assert verified(1, offered, []) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_path_offered_has_the_most_expected_tokens(seed: int) -> None:
    dice = random.Random(seed)
    parent = [-1, *(dice.randrange(i) for i in range(1, 12))]
    tree = TokenTree(tuple(range(12)), tuple(parent), (1.0, *(dice.random() for _ in range(11))))

    def worth(node: int) -> float:
        reach = list(itertools.accumulate((tree.est[i] for i in tree.path(node)), lambda a, b: a * b))
        return sum(reach[1:])

    path = best_path(tree)
    assert path.check(V) is None
    assert path.parent == tuple(range(-1, len(path) - 1))
    assert worth(path.token[-1]) == max(worth(i) for i in range(12))


def test_a_row_s_ends_end_its_drafts() -> None:
    rows, asked = DraftRows(BUDGET, V, 8), draft.wire("r", card("ngram"), 10, 40)
    (free,) = rows.propose([asked], [text(24)], [()])
    (ended,) = rows.propose([asked | {"id": "e"}], [text(24)], [(7,)])
    assert 7 in free[:-1]
    assert ended == free[: free.index(7) + 1]


@pytest.mark.parametrize("name", ["hostile", "wishful", "fewer_trees"])
def test_a_drafter_that_fails_is_counted_and_drafts_nothing(name: str) -> None:
    rows = DraftRows(BUDGET, V, 8)
    (good, bad) = rows.propose(
        [draft.wire("g", card("ngram"), 10, 40), draft.wire("b", Card(name), 10, 40)], [text(24)] * 2, [()] * 2
    )
    assert good
    assert not bad
    assert rows.close("b").failures == 1
    assert rows.close("g").failures == 0


def test_what_is_kept_is_bounded_and_told_at_the_end() -> None:
    rows = DraftRows(BUDGET, V, 3)
    for i in range(10):
        rows.propose([draft.wire(f"r{i}", card("ngram"), 10, 40)], [text(24)], [()])
    assert list(rows._rows) == ["r7", "r8", "r9"]
    assert rows.close("r9").bytes > 0
    assert rows.close("r9") == rows.close("r0") == Drafted()
