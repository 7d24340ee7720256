"""`auto` on an engine: among whom it chooses, that it serves rows, and that its accounts add up. Texts are a law."""

from __future__ import annotations

import dataclasses

import pytest

from raydecode import registry
from raydecode.config.decoding import Roster
from raydecode.conformance import workload
from raydecode.conformance.drafters import CHEAP
from raydecode.conformance.drive import drive
from raydecode.engine.cards import candidates
from raydecode.engine.choice import CARDS
from raydecode.engine.cost import CostCurve
from raydecode.engine.loop import Loop
from raydecode.engine.toy import ToyEngine, ToyLane
from raydecode.errors import UserError
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import visiting
from tests.methods.drafters import TWINS

AUTO = registry.get("drafters", "auto").parse(Card("auto"), "drafter")


def request(drafter, i=0, **given):
    spec = DecodingSpec(max_tokens=120, seed=3, ignore_eos=True, sampler=(Card("greedy"),), drafter=drafter, **given)
    return Request(f"r{i}", f"r{i}", Ids((0, 1, i % 5)), spec)


def run(drafter, rows=6, **engine):
    engine = ToyEngine(stream=True, **{"curve": CHEAP, **engine})
    return engine, drive(engine, [request(drafter, i) for i in range(rows)])


def test_among_whom():
    everybody = candidates("toy", AUTO)
    exact = {one.name for one in registry.cards("drafters") if one.effects.exact and not one.loads}
    assert {card.name for card in everybody} == exact - {"auto"}
    assert all(registry.get("drafters", card.name).parse(card, "x") == card for card in everybody), "options complete"
    named = dataclasses.replace(AUTO, options={"among": ["suffix", {"name": "ngram", "tokens": 3}]})
    assert [card.name for card in candidates("toy", named)] == ["suffix", "ngram"]
    assert candidates("toy", named)[1].options["tokens"] == 3


def test_a_drafter_named_twice_is_one_arm():
    """Two arms of one card would put a row twice into one proposal."""
    filled = registry.get("drafters", "ngram").parse(Card("ngram"), "drafter")
    twice = dataclasses.replace(AUTO, options={"among": ["ngram", "suffix", {"name": "ngram", **filled.options}]})
    assert [card.name for card in candidates("toy", twice)] == ["ngram", "suffix"]


def test_what_it_may_choose_rows_may_name():
    """Options are compared complete: the job's words and the row's need not be the same."""
    job = dataclasses.replace(AUTO, options={"among": [{"name": "draft_model", "model": "toy"}]})
    row = registry.get("drafters", "draft_model").parse(Card("draft_model", {"model": "toy"}), "drafter")
    Roster(own={"drafters": (job,)}, named=None).check(DecodingSpec(drafter=row))
    with pytest.raises(UserError, match="not on the job's roster"):
        other = dataclasses.replace(row, options={**row.options, "model": "another"})
        Roster(own={"drafters": (job,)}, named=None).check(DecodingSpec(drafter=other))


def test_a_drafter_that_breaks_the_law_or_loads_is_not_chosen_unasked():
    with visiting():
        names = {card.name for card in candidates("toy", AUTO)}
        assert not {"hostile", "random_paths"} & names, "their cards do not say exact"


def test_what_cannot_be_hosted_is_refused_by_name():
    refused = ToyEngine().refuse(DecodingSpec(drafter=Card("auto", {"among": ["nobody"]})))
    assert refused is not None
    assert (refused.field, refused.value) == ("decoding.drafter.among[0]", "nobody")
    not_loaded = Card("auto", {"among": ["ngram", {"name": "draft_model", "model": "elsewhere"}]})
    refused = ToyEngine().refuse(DecodingSpec(drafter=not_loaded))
    assert refused is not None
    assert (refused.field, refused.value) == ("decoding.drafter.among[1]", "elsewhere")
    with pytest.raises(UserError, match="nobody"):
        registry.get("drafters", "auto").parse(Card("auto", {"among": ["nobody"]}), "drafter")


def test_it_drafts_where_tokens_are_cheap():
    """The toy has five tokens and each costs a fiftieth of a call: four guesses are a token for nothing."""
    engine, found = run(AUTO)
    plain = run(None)[1]
    assert plain.difference(found) is None
    forwards = sum(one.stats.forwards for one in found.outcomes.values())
    assert forwards < 0.8 * sum(one.stats.forwards for one in plain.outcomes.values())
    assert engine.drafting is not None
    assert "saved about" in engine.drafting


def test_accounts_add_up():
    _, found = run(AUTO)
    for one in found.outcomes.values():
        stats = one.stats
        assert stats.drafter == "auto"
        for total in ("forwards", "drafted", "accepted"):
            assert sum(getattr(each, total) for each in stats.drafting.values()) == getattr(stats, total)
        assert all(each.failures == 0 for each in stats.drafting.values())
        assert sum(each.tokens for each in stats.drafting.values()) == len(one.tokens)
        assert sum(each.verify_s for each in stats.drafting.values()) == pytest.approx(stats.verify_s)
        assert sum(each.draft_s for each in stats.drafting.values()) <= stats.draft_s + 1e-9
        for each in stats.drafting.values():
            assert sum(each.kept) == each.accepted
            assert all(kept <= offered for kept, offered in zip(each.kept, each.offered, strict=True))
            assert all(b <= a for a, b in zip(each.kept, each.offered[1:], strict=False)), "deeper: where it was kept"


def test_a_drafter_by_name_is_counted_in_the_same_way():
    _, found = run(Card("suffix"))
    for one in found.outcomes.values():
        assert set(one.stats.drafting) <= {"suffix", "none"}
        assert one.stats.drafting["suffix"].drafted == one.stats.drafted > 0
        assert one.stats.verify_s > 0


def test_texts_do_not_know_it_with_adversaries_among():
    """Named ones serve although they raise, lie or propose what is not allowed."""
    with visiting(honest_only=True):
        for cls in TWINS:
            registry.register("drafters")(cls)
        among = ["hostile", "constant", "random_paths", "ngram", "maximal"]
        plain = drive(ToyEngine(slots=32, services=workload.services()), workload.requests())
        auto = registry.get("drafters", "auto").parse(Card("auto", {"among": among}), "drafter")
        mixed = drive(ToyEngine(slots=32, services=workload.services(), curve=CHEAP), workload.requests(auto))
        stats = [one.stats for one in mixed.outcomes.values()]
        assert sum(one.draft_failures for one in stats) > 0
        assert all(sum(each.failures for each in one.drafting.values()) == one.draft_failures for one in stats)
        failing = {name for one in stats for name, each in one.drafting.items() if each.failures}
        assert "hostile" in failing
        assert "ngram" not in failing, "whose failures they are is said"
    assert plain.difference(mixed) is None


def test_on_a_dear_device_nothing_is_drafted():
    """The same rows where each further token costs a whole call."""
    _, found = run(AUTO, curve=CostCurve((1, 2), (1.0, 2.0), fixed=True))
    for one in found.outcomes.values():
        assert one.stats.forwards == len(one.tokens)
        assert set(one.stats.drafting) == {"none"}, "nobody is even asked"


def test_rows_with_and_without_it_share_a_batch():
    cards = [AUTO, None, Card("ngram"), AUTO, Card("auto", {"among": ["suffix"]})]
    requests = [request(card, i) for i, card in enumerate(cards)]
    alone = drive(ToyEngine(), [request(None, i) for i in range(len(cards))])
    found = drive(ToyEngine(curve=CHEAP), requests)
    assert alone.difference(found) is None
    names = [set(found.outcomes[RowId(f"r{i}")].stats.drafting) for i in range(len(cards))]
    assert names[1] == set()
    assert names[2] <= {"ngram", "none"}
    assert names[4] <= {"suffix", "none"}


def test_a_lane_is_measured_when_the_first_row_asks_and_not_before():
    """A loop without a tabulated curve, as the torch engine is."""

    class Measured(Loop):
        name = "toy"

    loop = Measured(ToyLane(4, 256))
    drive(loop, [request(None, 0)])
    assert loop.choice.curve is None
    assert loop.drafting is None
    found = drive(loop, [request(AUTO, i) for i in range(6)])
    assert loop.choice.curve is not None
    assert not loop.choice.curve.fixed
    assert "a call of one row costs" in loop.drafting
    assert drive(Measured(ToyLane(4, 256)), [request(None, i) for i in range(6)]).difference(found) is None


def test_where_no_slot_is_free_it_waits_to_be_measured():
    """Rows that came first hold every slot; the row that asks gets one, and then there was a free one."""

    class Measured(Loop):
        name = "toy"

    loop = Measured(ToyLane(1, 256))
    drive(loop, [request(None, 0), request(AUTO, 1)])
    assert loop.choice.curve is not None


def test_any_number_of_cards_that_choose_and_few_are_remembered():
    cards = [
        Card("auto", {"among": [{"name": "ngram", "tokens": n % 40 + 1, "longest": n // 40 + 2}]})
        for n in range(CARDS + 6)
    ]

    def requests(drafters):
        return [
            dataclasses.replace(one, decoding=dataclasses.replace(one.decoding, max_tokens=8))
            for one in (request(card, i) for i, card in enumerate(drafters))
        ]

    engine = ToyEngine(slots=32, curve=CHEAP)
    found = drive(engine, requests(cards))
    assert drive(ToyEngine(slots=32), requests([None] * len(cards))).difference(found) is None
    assert all(one.error is None and not one.stats.draft_failures for one in found.outcomes.values())
    assert len(engine.choice._choosers) == len(engine.choice._cards) == CARDS
