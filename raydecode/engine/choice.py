"""Rows whose drafter is chosen (`auto`): between the step and the formulas of `choose`.

Nothing is drafted before the device's curve is known; `measure` asks for it when the first such row waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raydecode import registry
from raydecode.contracts import Needs
from raydecode.engine.cards import candidates
from raydecode.engine.choose import Chooser
from raydecode.engine.cost import CostCurve
from raydecode.engine.inside import needs_of
from raydecode.engine.rows import Row
from raydecode.request import Card, RowId
from raydecode.tree import TokenTree

CARDS = 64
"""Cards that choose which are remembered."""


class Choice:
    """engine: its name, for what it hosts; curve: what its calls cost, None until it was measured; wanted: a row came
    that needs it; reading: one whose drafters may learn from its prompt."""

    def __init__(self, engine: str, curve: CostCurve | None = None) -> None:
        self.engine, self.curve = engine, curve
        self.wanted = self.reading = False
        self._cards: dict[str, tuple[Card, ...]] = {}
        self._choosers: dict[str, Chooser] = {}

    @property
    def missing(self) -> bool:
        """Whether something is to be measured."""
        if self.curve is None:
            return self.wanted
        return self.reading and self.curve.told_s is None and not self.curve.fixed

    def cards(self, card: Card) -> tuple[Card, ...]:
        """The drafters that a card chooses among."""
        key = repr(card)
        if key not in self._cards:
            _drop(self._cards)
            self._cards[key] = candidates(self.engine, card)
        return self._cards[key]

    def asks(self, rows: Sequence[Row], count: int, reading: int) -> Iterator[tuple[Row, str, Card, int]]:
        """(row, key, drafter, most nodes): whom to ask for which row. count: rows of the call; reading: its tokens
        besides their trees."""
        if self.curve is None or not rows:
            return
        most = self.curve.most(count, count + reading)
        for chooser, some in self._by_chooser(rows):
            awake = chooser.awake() if most or reading else []  # a prompt that is read puts nobody to sleep
            keys = {chooser.arms[arm].key for arm in awake}
            for row in some:
                if row.seat is None:
                    size = len(row.source) or row.prompt_len
                    kind = repr(row.spec.sampler), size.bit_length() // 2, bool(row.spec.monitors)
                    row.seat = chooser.seat(kind)
                for key in [key for key in row.drafters if key not in keys]:
                    del row.drafters[key]
                for arm in chooser.ask(row.seat, awake) if most else ():
                    yield row, chooser.arms[arm].key, chooser.arms[arm].card, chooser.budget(arm, most)

    def decide(
        self,
        rows: Sequence[Row],
        found: Mapping[tuple[RowId, str], TokenTree],
        count: int,
        tokens: int,
        clock: Callable[[], float],
    ) -> dict[RowId, TokenTree]:
        """The trees to verify; a row without one keeps its root. found: (row, key) -> what was proposed."""
        trees: dict[RowId, TokenTree] = {}
        if self.curve is None:
            return trees
        for chooser, some in self._by_chooser(rows):
            began = clock()
            arms = list(enumerate(chooser.arms))
            proposals = [{i: found[row.id, arm.key] for i, arm in arms if (row.id, arm.key) in found} for row in some]
            seats = [row.seat for row in some if row.seat]
            for row, pick in zip(some, chooser.choose(seats, proposals, count, tokens), strict=True):
                if pick:
                    trees[row.id], row.pick = pick.tree, pick.drafter
                    tokens += len(pick.tree) - 1
            share = (clock() - began) / len(some)
            asked = {arm for one in proposals for arm in one}
            for arm in asked:
                chooser.charge(arm, share * len(some) / len(asked))
            for row in some:
                row.draft_s += share
        return trees

    def charge(self, row: Row, key: str, seconds: float, asked: bool) -> None:
        """Seconds of a drafter for a row; a row with a drafter by name has no account."""
        if row.chosen and self.curve is not None:
            chooser = self._chooser(row)
            chooser.charge(chooser.index[key], seconds, int(asked))

    def listeners(self, row: Row, count: int) -> list[Card]:
        """Drafters that so many tokens of this row's prompt are told to; nobody before calls were measured."""
        if self.curve is None:
            return []
        chooser = self._chooser(row)
        return [chooser.arms[arm].card for arm in chooser.hears(count)]

    def heard(self, row: Row, cards: Sequence[Card], count: int) -> None:
        """These were told."""
        chooser = self._chooser(row)
        chooser.heard([chooser.index[repr(card)] for card in cards], count)

    def learn(self, row: Row, emitted: Sequence[int], accepted: int, drafted: int, count: int, tokens: int) -> None:
        """What a call of `tokens` tokens over `count` rows said of one of them."""
        if row.seat is None:
            return
        chooser = self._chooser(row)
        chooser.learn(row.seat, emitted)
        if row.pick and drafted:
            chooser.paid(row.pick, count, tokens, drafted, accepted)

    def timed(self, count: int, tokens: int, reading: int, seconds: float) -> None:
        """A call over `count` rows that decode took so long; reading: those of its tokens that are no tree's."""
        if self.curve is None:
            return
        if not reading:
            self.curve.observe(count, tokens, seconds)
        for chooser in self._choosers.values():
            chooser.spent_s += seconds

    def said(self) -> str | None:
        """What was measured, asked and chosen so far, in words; None where no row's drafter was chosen."""
        if not self.wanted:
            return None
        if self.curve is None:
            return "auto drafted nothing: what calls cost here was not measured"
        costs = ", ".join(f"{n}: {ratio:.2f}" for n, ratio in self.curve.ratios() if n > 1)
        parts = [f"a call of one row costs, by its tokens and relative to one token, {costs or 'unknown'}"]
        for chooser in self._choosers.values():
            arms = [
                f"{arm.card.name} was asked {arm.asks} times for {arm.seconds:.3g} s and saved about {arm.saved:.3g} s"
                for arm in sorted(chooser.arms, key=lambda arm: -arm.saved)
            ]
            parts.append(f"in {chooser.spent_s:.3g} s of calls " + ", ".join(arms))
        return "; ".join(parts)

    def _by_chooser(self, rows: Sequence[Row]) -> list[tuple[Chooser, list[Row]]]:
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row.chosen, []).append(row)
        return [(self._chooser(some[0]), some) for some in found.values()]

    def _chooser(self, row: Row) -> Chooser:
        """Of the row's card. A forgotten one begins anew, with the same drafters in the same order."""
        if row.chosen not in self._choosers:
            assert self.curve is not None
            assert row.spec.drafter is not None
            _drop(self._choosers)
            cards = self.cards(row.spec.drafter)
            dear = () if registry.among(row.spec.drafter) else [card for card in cards if _needs(card).lanes]
            readers = [card for card in cards if _needs(card).prompt]
            self._choosers[row.chosen] = Chooser(cards, self.curve, dear, readers)
        return self._choosers[row.chosen]


def _drop(known: dict[str, Any]) -> None:
    """Make room for one more: rows may bring any number of cards."""
    if len(known) >= CARDS:
        del known[next(iter(known))]


def _needs(card: Card) -> Needs:
    """Lanes: its drafts take forwards of their own. Prompt: it learns from prompts."""
    return needs_of(registry.get("drafters", card.name).factory, card, ())
