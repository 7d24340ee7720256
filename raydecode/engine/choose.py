"""`auto`: which drafter serves which row, with how many nodes, or none; decided before every call.

    ask       every drafter whose account allows it, of each row (see below)
    bet       r = rates by class of node (`acceptance`) times the row's own fit of this drafter
    pick      per row the drafter whose best part saves most seconds: max over n of  price * sum of the n greatest r
              - what n tokens cost in a call where all rows draft as many;   price = seconds per token of plain decoding
    cut       all rows' trees together to the best call (`shape`): none where drafting would lose
    watch     every proposal, used or not, is compared with the text that comes: so all drafters are known, not only
              those that served, and what is not used costs its drafting alone

That makes the bandit's exploration nearly free, and its exploitation exact up to the rates. An account bounds the rest:

    seconds of a drafter <= SHARE * seconds of all calls + GRACE plain calls + a quarter of the seconds that it saved

GRACE is for drafters that guess from tokens. One whose drafts take forwards begins with none and as if a proposal took
FORWARDS plain calls, so it is first asked when SHARE has paid for it; one that the job names has the grace in any case.

Logits behind the tokens of a prompt, which a drafter may learn from, are made where its account has room for what they
take, and are put down there.

A drafter over it sleeps: it is not asked, learns nothing and forgets its rows (a drafter is a cache). In a row where it
saves less than it costs, as far as known, it is asked every RETRY-th step. The kind of a row is its sampler chain, the
size of its prompt and whether something watches it; a new row starts from what is known of its kind.

Fit: tokens that came true / tokens foreseen, of the row's last proposals, MEMORY each, drawn to 1. It scales the chance
of the first drafted token of a path and so of all. Methods never see this, and texts cannot depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from raydecode.engine.acceptance import Acceptance, Watch
from raydecode.engine.cost import CostCurve
from raydecode.engine.shape import best
from raydecode.request import Card
from raydecode.tree import TokenTree

SHARE = 0.003
GRACE = 4.0
FORWARDS = 4.0
RETRY = 16
MEMORY = 0.92
FAITH = 2.0
"""Tokens that came true as foreseen, before any did: how strongly a fit is drawn to 1."""
WATCHES = 8
"""Proposals of one drafter that are followed at once in a row."""
SURE = 0.98
"""No token counts for more than this, whatever the rates say."""
ROOM = 6
"""Nodes asked for beyond twice the most that was lately used."""
KINDS = 32
"""Kinds of rows that are told apart; all later ones are one kind."""


@dataclass(slots=True)
class Arm:
    """A drafter to choose. key: its card's repr; grace: plain calls that it may take before it saved anything; seconds:
    spent in it, saved: by what it drafted; ask_s: what one row's proposal costs."""

    card: Card
    key: str = ""
    grace: float = GRACE
    seconds: float = 0.0
    saved: float = 0.0
    ask_s: float = 0.0
    asks: int = 0
    used: float = 8.0
    """The most nodes lately used of its trees, fading."""


@dataclass(slots=True)
class Seat:
    """What is known of a row. fit: drafter -> tokens that came true, tokens foreseen; worth: seconds that a proposal
    saves; rest: steps until a drafter that does not pay is asked again."""

    kind: int
    fit: dict[int, list[float]] = field(default_factory=dict)
    worth: dict[int, float] = field(default_factory=dict)
    rest: dict[int, int] = field(default_factory=dict)
    watches: list[Watch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pick:
    """A row's tree for the next call, and whose it is."""

    tree: TokenTree
    drafter: Card


class Chooser:
    """One per engine and `auto` card. curve: the device; dear: cards whose drafts take forwards and that were not
    named; readers: those that learn from prompts. Below, tokens: new tokens of the call without these drafts, rows: its
    rows that decode."""

    def __init__(
        self, cards: Sequence[Card], curve: CostCurve, dear: Collection[Card] = (), readers: Collection[Card] = ()
    ) -> None:
        self.arms = [Arm(card, repr(card)) for card in cards]
        for arm in self.arms:
            if arm.card in dear:
                arm.grace, arm.ask_s = 0.0, FORWARDS * curve(1, 1)
        self.index = {arm.key: i for i, arm in enumerate(self.arms)}
        self._readers = [i for i, arm in enumerate(self.arms) if arm.card in readers]
        self.curve, self.rates = curve, Acceptance()
        self.spent_s = 0.0
        self._worth: dict[tuple[int, int], float] = {}
        self._kinds: dict[Hashable, int] = {}

    def seat(self, kind: Hashable) -> Seat:
        """For a new row of this kind."""
        if kind not in self._kinds and len(self._kinds) < KINDS:
            self._kinds[kind] = len(self._kinds)
        number = self._kinds.get(kind, KINDS)
        known = {arm: self._worth[number, arm] for arm in range(len(self.arms)) if (number, arm) in self._worth}
        return Seat(number, worth=known)

    def awake(self) -> list[int]:
        """Drafters whose account allows one more proposal."""
        return [i for i, arm in enumerate(self.arms) if self._affords(i, arm.ask_s)]

    def hears(self, count: int) -> list[int]:
        """Of those that learn from prompts the ones whose account has room for so many tokens of one."""
        return [i for i in self._readers if self._affords(i, self._told(count) / len(self._readers))]

    def heard(self, arms: Sequence[int], count: int) -> None:
        """These were told of so many tokens, whose logits nobody else wanted."""
        for arm in arms:
            self.charge(arm, self._told(count) / len(arms))

    def ask(self, seat: Seat, awake: Sequence[int]) -> list[int]:
        """Whom to ask for this row."""
        asked, cheap = [], SHARE * self.curve(1, 1)
        for arm in awake:
            cost = self.arms[arm].ask_s
            if cost > cheap and seat.worth.get(arm, math.inf) < cost:
                seat.rest[arm] = seat.rest.get(arm, RETRY) - 1
                if seat.rest[arm] > 0:
                    continue
            seat.rest[arm] = RETRY
            asked.append(arm)
        return asked

    def budget(self, arm: int, most: int) -> int:
        """Nodes to ask for, where `most` are the most that could pay."""
        return min(most, int(2 * self.arms[arm].used) + ROOM)

    def choose(
        self, seats: Sequence[Seat], proposals: Sequence[Mapping[int, TokenTree]], rows: int, tokens: int
    ) -> list[Pick | None]:
        """A tree per row from its drafters' proposals, and None where plain decoding is best. Begins the watches."""
        drafting = [i for i, some in enumerate(proposals) if any(len(tree) > 1 for tree in some.values())]
        picks: list[Pick | None] = [None] * len(seats)
        for seat, some in zip(seats, proposals, strict=True):
            if all(len(tree) == 1 for tree in some.values()):
                for arm in some:
                    self._value(seat, arm, 0.0)
        if not drafting:
            return picks
        longest = max(len(tree) - 1 for some in proposals for tree in some.values())
        count, plain = len(drafting), self.curve(rows, rows)
        seconds_N = self.curve.table(rows, tokens, longest * count)
        sunk = seconds_N[0] - plain  # prompts that are read in this call take their time in any case
        share_N = [(s - seconds_N[0]) / count for s in seconds_N[::count]]
        chosen: list[tuple[int, TokenTree, list[float]]] = []
        for i in drafting:
            best_of = (-1.0, 0, TokenTree.root(0), [1.0])
            for arm, tree in proposals[i].items():
                reach_N = self._bet(seats[i], arm, tree)
                saving = _saving(reach_N, plain / rows, share_N)
                self._value(seats[i], arm, saving)
                if saving > best_of[0]:
                    best_of = saving, arm, tree, reach_N
                self.arms[arm].used *= 0.98
            chosen.append(best_of[1:])
        if tokens <= rows and self.curve.stale(rows):  # else this call is not plain in any case
            return picks
        shape = best([one[2] for one in chosen], lambda n: seconds_N[n] - sunk, others=rows - count)
        for i, (arm, tree, _), keep in zip(drafting, chosen, shape.keep, strict=True):
            if len(keep) > 1:
                picks[i] = Pick(tree.only(keep), self.arms[arm].card)
                self.arms[arm].used = max(self.arms[arm].used, len(keep) - 1.0)
        return picks

    def learn(self, seat: Seat, emitted: Sequence[int]) -> None:
        """The row's text went on."""
        for token in emitted:
            going = []
            for watch in seat.watches:
                if watch.follow(token, self.rates, seat.kind):
                    going.append(watch)
                else:
                    fit = seat.fit.setdefault(watch.drafter, [0.0, 0.0])
                    fit[0] = MEMORY * fit[0] + watch.depth
                    fit[1] = MEMORY * fit[1] + watch.foreseen
            seat.watches = going

    def charge(self, arm: int, seconds: float, asks: int = 0) -> None:
        """Seconds in a drafter, for so many rows' proposals; without any for what it learned."""
        one = self.arms[arm]
        one.seconds += seconds
        one.asks += asks
        if asks:
            one.ask_s += (seconds / asks - one.ask_s) * max(1 / one.asks, 0.1)

    def paid(self, card: Card, rows: int, tokens: int, drafted: int, accepted: int) -> None:
        """A call of this size verified `drafted` tokens of a drafter, of which `accepted` were right."""
        plain = self.curve(rows, max(tokens - drafted, rows))
        saved = accepted * self.curve(rows, rows) / rows - (self.curve(rows, tokens) - plain)
        self.arms[self.index[repr(card)]].saved += saved

    def _affords(self, arm: int, seconds: float) -> bool:
        """Whether its account has room for so many seconds more."""
        one = self.arms[arm]
        room = one.grace * self.curve(1, 1) + SHARE * self.spent_s + max(one.saved, 0.0) / 4
        return one.seconds + seconds <= room

    def _told(self, count: int) -> float:
        return count * (self.curve.told_s or 0.0)

    def _bet(self, seat: Seat, arm: int, tree: TokenTree) -> list[float]:
        """P(accepted) of every node, as this row goes; the proposal is watched from here on."""
        if len(tree) == 1:
            return [1.0]
        reach_N = self.rates.reach(arm, tree, seat.kind)
        if sum(watch.drafter == arm for watch in seat.watches) < WATCHES:
            seat.watches.append(Watch(arm, tree, sum(reach_N) - 1.0))
        came, foreseen = seat.fit.get(arm, (0.0, 0.0))
        first = max(r for r, parent in zip(reach_N, tree.parent, strict=True) if not parent)
        fit = min((came + FAITH) / (foreseen + FAITH), SURE / max(first, 1e-9))
        return [1.0, *(r * fit for r in reach_N[1:])]

    def _value(self, seat: Seat, arm: int, seconds: float) -> None:
        """What a proposal of this drafter is worth, in this row and in rows of this kind."""
        seat.worth[arm] = seat.worth.get(arm, seconds) + 0.2 * (seconds - seat.worth.get(arm, seconds))
        known = self._worth.get((seat.kind, arm), seconds)
        self._worth[seat.kind, arm] = known + 0.05 * (seconds - known)


def _saving(reach_N: Sequence[float], price: float, share_N: Sequence[float]) -> float:
    """Seconds saved by the best part of one row's tree."""
    total, most = 0.0, 0.0
    for r, cost in zip(sorted(reach_N[1:], reverse=True), share_N[1:], strict=False):
        total += r
        most = max(most, price * total - cost)
    return most
