"""Every row's token tree: a replay, forced ids, a draft, or the pending token alone.

A drafter is a cache: whatever it raises or returns, the text is the same. Failures mean no draft this step, counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from raydecode.constraint import Constraint, compose
from raydecode.contracts import Drafter, Monitor, Needs, RowView, StepRecord
from raydecode.engine.choice import Choice
from raydecode.engine.inside import needs_of
from raydecode.engine.lane import Chunk, Outputs
from raydecode.engine.rounds import Proposal, Rounds
from raydecode.engine.rows import Held, Row
from raydecode.engine.tally import KNOWN
from raydecode.request import Card, RowId
from raydecode.tree import TokenTree


@dataclass(slots=True)
class Ask:
    """Rows that one drafter is asked for in this step, and the most nodes of each."""

    card: Card
    rows: list[Row] = field(default_factory=list)
    most: dict[RowId, int] = field(default_factory=dict)

    def add(self, row: Row, most: int) -> None:
        self.rows.append(row)
        self.most[row.id] = min(most, row.limit - row.t - 1)


class Drafters:
    """The drafters of one engine with their shared state.

    choice: decides for rows whose card chooses; budget: most drafted nodes per row and step of a drafter by name
    """

    def __init__(
        self,
        drafter: Callable[[str], Drafter],
        monitor: Callable[[str], Monitor],
        rounds: Rounds,
        choice: Choice,
        *,
        budget: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of, self._monitor, self._rounds, self._sites = drafter, monitor, rounds, rounds.lane.sites
        self.choice = choice
        self._budget, self._clock = budget, clock
        self._shared: dict[str, Any] = {}

    def trees(self, rows: Sequence[Row], vocab_size: int, eos: frozenset[int], reading: int = 0) -> list[TokenTree]:
        """One valid tree per row, rooted at its pending token and no longer than the row may still become.

        reading: tokens of the call besides the trees
        """
        trees = {row.id: TokenTree.root(row.pending) for row in rows}
        asks: dict[str, Ask] = {}
        choosing: list[Row] = []
        for row in rows:
            row.pick, card = None, row.spec.drafter
            known = self._known(row, eos)
            if known:
                trees[row.id] = self._checked(row, TokenTree.chain((row.pending, *known)), KNOWN, vocab_size, eos)
            elif card and row.limit - row.t > 1 and (row.horizon is None or row.horizon > 1):
                if row.chosen:
                    choosing.append(row)
                else:
                    asks.setdefault(repr(card), Ask(card)).add(row, self._budget)
                    row.pick = card
        for row, key, card, budget in self.choice.asks(choosing, len(rows), reading):
            asks.setdefault(key, Ask(card)).add(row, budget)
        found = self._propose(asks, vocab_size, eos)
        for row in rows:
            if row.pick:  # by name
                trees[row.id] = found.get((row.id, repr(row.pick)), trees[row.id])
        if choosing:
            tokens = reading + sum(len(tree) for tree in trees.values())
            trees |= self.choice.decide(choosing, found, len(rows), tokens, self._clock)
        return [trees[row.id] for row in rows]

    def observe(
        self, row: Row, tree: TokenTree, path: tuple[int, ...], emitted: tuple[int, ...], outputs: Outputs, base: int
    ) -> None:
        """Let the row's drafters learn from what was verified, every node of it; the tree's nodes begin at `base`."""
        for key, held in row.drafters.items():
            began = self._clock()
            try:
                drafter, top = self._of(held.card.name), {}
                needs = needs_of(drafter, held.card, self._sites)
                if needs.top_k:
                    nodes = range(len(tree)) if needs.top_k_nodes == "all" else path
                    k = min(needs.top_k, outputs.logits_MV.shape[1])
                    best = outputs.logits_MV[[base + node for node in nodes]].topk(k).indices.tolist()
                    top = {node: tuple(ids) for node, ids in zip(nodes, best, strict=True)}
                hidden = _hidden(row, needs, len(tree), path, outputs, base) if needs.hidden and path else {}
                record = StepRecord(row.id, held.state, tree, path, emitted, top, hidden)
                held.state = drafter.observe([record], self._share(held.card.name), held.card.options)[0]
            except Exception:
                row.no_draft(held.card.name)
            self._charge(row, held.card.name, key, self._clock() - began)

    def read(self, reading: Sequence[Chunk], rows: Mapping[int, Row], outputs: Outputs, eos: frozenset[int]) -> None:
        """Let drafters learn from prompts: chunks with a tree, whose nodes are the call's last. rows: by slot."""
        base = len(outputs.logits_MV) - sum(len(chunk.tree) for chunk in reading if chunk.tree)
        for chunk in reading:
            if chunk.tree:
                self._tell(rows[chunk.slot], chunk.tree, outputs, base, eos)
                base += len(chunk.tree)

    def _tell(self, row: Row, tree: TokenTree, outputs: Outputs, base: int, eos: frozenset[int]) -> None:
        """One part of a row's prompt to those who want it."""
        card = row.spec.drafter
        cards = self.choice.listeners(row, len(tree)) if row.chosen else [card] if card else []
        if row.chosen:
            self.choice.heard(row, cards, len(tree))
        for card in cards:
            try:
                if needs_of(self._of(card.name), card, self._sites).prompt:
                    self._view(row, repr(card), card, eos)  # opens its state
            except Exception:
                row.no_draft(card.name)
        self.observe(row, tree, (), (), outputs, base)

    def size(self, row: Row) -> int:
        """Bytes that the row's drafters keep, as they say themselves; 0 for those that do not say."""
        cards = [(held.card, held.state) for held in row.drafters.values()]
        if not cards and row.spec.drafter and row.spec.drafter.name in self._shared:
            cards = [(row.spec.drafter, None)]
        total = 0
        for card, state in cards:
            try:
                size = getattr(self._of(card.name), "size", None)
                total += int(size(state, self._share(card.name), card.options)) if size else 0
            except Exception:
                continue
        return total

    def _charge(self, row: Row, name: str, key: str, seconds: float, asked: bool = False) -> None:
        row.draft_s += seconds
        row.tally(name).draft_s += seconds
        self.choice.charge(row, key, seconds, asked)

    def _known(self, row: Row, eos: frozenset[int]) -> tuple[int, ...]:
        """Ids that will follow for certain (replay, forced) or probably (hint)."""
        if row.t < len(row.replay):
            return row.replay[row.t :]
        if not row.spec.monitors:
            return ()
        try:
            states = zip(row.spec.monitors, row.monitor_state, strict=True)
            constraint = compose((self._monitor(c.name).constrain(s) for c, s in states), eos)
        except Exception:
            return ()  # the walk asks again and makes it the row's fault
        if not isinstance(constraint, Constraint):
            return ()
        return (constraint.forced or constraint.hint)[: max(row.limit - row.t - 1, 0)]

    def _propose(
        self, asks: Mapping[str, Ask], vocab_size: int, eos: frozenset[int]
    ) -> dict[tuple[RowId, str], TokenTree]:
        """(row, key) -> what was proposed, ask by ask; the forwards of all are made together."""
        opened = [(key, ask, *self._open(key, ask, eos)) for key, ask in asks.items()]
        self._rounds.run([one for _, _, one, _ in opened if one])
        found: dict[tuple[RowId, str], TokenTree] = {}
        for key, ask, one, seconds in opened:
            asked: list[Row] = []
            if one:
                began, asked = self._clock(), one.rows
                try:
                    if one.failed:
                        raise one.failed
                    assert one.trees is not None
                    for row, tree in zip(asked, one.trees, strict=True):
                        size = ask.most[row.id] + 1
                        found[row.id, key] = tree.prune(size) if len(tree) > size else tree
                except Exception:  # whatever a drafter returned
                    self._failed(ask.card.name, asked)
                    for row in asked:
                        found.pop((row.id, key), None)
                for row in asked:
                    if (row.id, key) in found:
                        tree = found[row.id, key]
                        found[row.id, key] = self._checked(row, tree, ask.card.name, vocab_size, eos)
                seconds += one.seconds + self._clock() - began
            begun = {row.id for row in asked}
            for row in ask.rows:
                self._charge(row, ask.card.name, key, seconds / len(ask.rows), asked=row.id in begun)
        return found

    def _open(self, key: str, ask: Ask, eos: frozenset[int]) -> tuple[Proposal | None, float]:
        """A drafter's generator, not yet begun, and what it took; None where no row may draft now."""
        card, rows, began = ask.card, ask.rows, self._clock()
        try:
            drafter = self._of(card.name)
            lanes = needs_of(drafter, card, self._sites).lanes
            rows = self._rounds.ready(rows, lanes) if lanes else rows
            views, most = [self._view(row, key, card, eos) for row in rows], [ask.most[row.id] for row in rows]
            drafting = drafter.propose(views, most, self._share(card.name), card.options)
            return Proposal(rows, drafting, lanes) if rows else None, self._clock() - began
        except Exception:
            self._failed(card.name, rows)
            return None, self._clock() - began

    def _failed(self, name: str, rows: Sequence[Row]) -> None:
        """No draft of this drafter for these rows, counted."""
        for row in rows:
            row.no_draft(name)

    def _view(self, row: Row, key: str, card: Card, eos: frozenset[int]) -> RowView:
        def view(state: Any) -> RowView:
            ends, left = eos.union(row.spec.stop_tokens), row.limit - row.t
            blocks = self._rounds.lane.blocks
            return RowView(row.id, row.t, context, row.pending, row.prompt_len, state, left, row.tail, ends, blocks)

        context = tuple(row.context)
        if key not in row.drafters:
            row.drafters[key] = Held(card, self._of(card.name).open(view(None), card.options))
        return view(row.drafters[key].state)

    def _share(self, name: str) -> Any:
        if name not in self._shared:
            self._shared[name] = self._of(name).open_shared()
        return self._shared[name]

    def _checked(self, row: Row, tree: TokenTree, name: str, vocab_size: int, eos: frozenset[int]) -> TokenTree:
        """The tree, or the root alone where it is none. name: whose it is."""
        try:
            why = tree.check(vocab_size, eos) or ("wrong root" if tree.token[0] != row.pending else None)
        except Exception as error:  # a drafter may return anything at all
            why = str(error)
        if why:
            if row.t >= len(row.replay):
                row.no_draft(name)
            return TokenTree.root(row.pending)
        if row.horizon is not None:
            tree = tree.shallow(max(row.horizon, 1))
        return tree


def _hidden(
    row: Row, needs: Needs, size: int, path: tuple[int, ...], outputs: Outputs, base: int
) -> dict[int, dict[str, Tensor]]:
    """What the drafter's `hidden_nodes` says, copied: the call's own tensors go. Keeps the row's tail."""
    wanted = {"tail": path[-1:], "accepted": path, "all": range(size)}[needs.hidden_nodes]
    hidden = {node: {site: outputs.hidden[site][base + node].clone() for site in needs.hidden} for node in wanted}
    row.tail = {**row.tail, **hidden[path[-1]]}
    return hidden
