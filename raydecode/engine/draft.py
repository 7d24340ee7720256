"""Every row's token tree: a replay, forced ids, a draft, or the pending token alone.

A drafter is a cache: whatever it raises or returns, the text is the same. Failures mean no draft this step, counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from raydecode.constraint import Constraint, compose
from raydecode.contracts import Drafter, Monitor, Needs, RowView, StepRecord
from raydecode.engine.inside import needs_of
from raydecode.engine.lane import Chunk, Outputs
from raydecode.engine.rounds import Proposal, Rounds
from raydecode.engine.rows import Row
from raydecode.request import Card
from raydecode.tree import TokenTree


class Drafters:
    """The drafters of one engine with their shared state. budget: most drafted nodes per row and step."""

    def __init__(
        self,
        drafter: Callable[[str], Drafter],
        monitor: Callable[[str], Monitor],
        rounds: Rounds,
        *,
        budget: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of, self._monitor, self._rounds, self._sites = drafter, monitor, rounds, rounds.lane.sites
        self._budget, self._clock = budget, clock
        self._shared: dict[str, Any] = {}

    def trees(self, rows: Sequence[Row], vocab_size: int, eos: frozenset[int]) -> list[TokenTree]:
        """One valid tree per row, rooted at its pending token and no longer than the row may still become."""
        trees = {row.id: TokenTree.root(row.pending) for row in rows}
        groups: dict[str, list[Row]] = {}
        for row in rows:
            known = self._known(row, eos)
            if known:
                trees[row.id] = TokenTree.chain((row.pending, *known))
            elif row.spec.drafter and row.limit - row.t > 1:
                groups.setdefault(repr(row.spec.drafter), []).append(row)
        trees |= self._propose(list(groups.values()), eos)
        return [self._checked(row, trees[row.id], vocab_size, eos) for row in rows]

    def observe(
        self, row: Row, tree: TokenTree, path: tuple[int, ...], emitted: tuple[int, ...], outputs: Outputs, base: int
    ) -> None:
        """Let the row's drafter learn from what was verified, every node of it; the tree's nodes begin at `base`."""
        assert row.spec.drafter is not None
        name, began = row.spec.drafter.name, self._clock()
        try:
            drafter, top = self._of(name), {}
            needs = needs_of(drafter, row.spec.drafter, self._sites)
            if needs.top_k:
                nodes = range(len(tree)) if needs.top_k_nodes == "all" else path
                k = min(needs.top_k, outputs.logits_MV.shape[1])
                best = outputs.logits_MV[[base + node for node in nodes]].topk(k).indices.tolist()
                top = {node: tuple(ids) for node, ids in zip(nodes, best, strict=True)}
            hidden = _hidden(row, needs, len(tree), path, outputs, base) if needs.hidden and path else {}
            record = StepRecord(row.id, row.drafter_state, tree, path, emitted, top, hidden)
            row.drafter_state = drafter.observe([record], self._share(name), row.spec.drafter.options)[0]
        except Exception:
            row.draft_failures += 1
        row.draft_s += self._clock() - began

    def read(self, reading: Sequence[Chunk], rows: Mapping[int, Row], outputs: Outputs, eos: frozenset[int]) -> None:
        """Let drafters learn from prompts: chunks with a tree, whose nodes are the call's last. rows: by slot."""
        base = len(outputs.logits_MV) - sum(len(chunk.tree) for chunk in reading if chunk.tree)
        for chunk in reading:
            if chunk.tree:
                row = rows[chunk.slot]
                try:
                    assert row.spec.drafter is not None
                    self._view(row, row.spec.drafter, eos)  # opens its state
                    self.observe(row, chunk.tree, (), (), outputs, base)
                except Exception:
                    row.draft_failures += 1
                base += len(chunk.tree)

    def size(self, row: Row) -> int:
        """Bytes that the row's drafter keeps, as it says itself; 0 for one that does not say."""
        card = row.spec.drafter
        if card is None or (row.drafter_state is None and card.name not in self._shared):
            return 0
        try:
            size = getattr(self._of(card.name), "size", None)
            return int(size(row.drafter_state, self._share(card.name), card.options)) if size else 0
        except Exception:
            return 0

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

    def _propose(self, groups: Sequence[list[Row]], eos: frozenset[int]) -> dict[Any, TokenTree]:
        """The drafts of rows that share a card, group by group; their forwards are made together."""
        opened = [(group, *self._open(group, eos)) for group in groups]
        self._rounds.run([one for _, one, _, _ in opened if one])
        trees: dict[Any, TokenTree] = {}
        for group, one, budgets, seconds in opened:
            if one:
                seconds += one.seconds
                try:
                    if one.failed:
                        raise one.failed
                    assert one.trees is not None
                    for row, tree, budget in zip(one.rows, one.trees, budgets, strict=True):
                        trees[row.id] = tree.prune(budget + 1) if len(tree) > budget + 1 else tree
                except Exception:  # whatever a drafter returned
                    self._failed(one.rows, trees)
            for row in group:
                row.draft_s += seconds / len(group)
        return trees

    def _open(self, rows: list[Row], eos: frozenset[int]) -> tuple[Proposal | None, list[int], float]:
        """A group's generator, not yet begun, with its budgets and what it took; None where no row may draft now."""
        card, began = rows[0].spec.drafter, self._clock()
        assert card is not None
        try:
            drafter = self._of(card.name)
            lanes = needs_of(drafter, card, self._sites).lanes
            rows = self._rounds.ready(rows, lanes) if lanes else rows
            budgets = [min(self._budget, row.limit - row.t - 1) for row in rows]
            views = [self._view(row, card, eos) for row in rows]
            drafting = drafter.propose(views, budgets, self._share(card.name), card.options)
            return Proposal(rows, drafting, lanes) if rows else None, budgets, self._clock() - began
        except Exception:
            self._failed(rows, {})
            return None, [], self._clock() - began

    def _failed(self, rows: Sequence[Row], trees: dict[Any, TokenTree]) -> None:
        """No draft for these rows, counted."""
        for row in rows:
            row.draft_failures += 1
            trees.pop(row.id, None)

    def _view(self, row: Row, card: Card, eos: frozenset[int]) -> RowView:
        def view() -> RowView:
            state, ends, left = row.drafter_state, eos.union(row.spec.stop_tokens), row.limit - row.t
            blocks = self._rounds.lane.blocks
            return RowView(row.id, row.t, context, row.pending, row.prompt_len, state, left, row.tail, ends, blocks)

        context = tuple(row.context)
        if row.drafter_state is None:
            row.drafter_state = self._of(card.name).open(view(), card.options)
        return view()

    def _share(self, name: str) -> Any:
        if name not in self._shared:
            self._shared[name] = self._of(name).open_shared()
        return self._shared[name]

    def _checked(self, row: Row, tree: TokenTree, vocab_size: int, eos: frozenset[int]) -> TokenTree:
        try:
            why = tree.check(vocab_size, eos) or ("wrong root" if tree.token[0] != row.pending else None)
        except Exception as error:  # a drafter may return anything at all
            why = str(error)
        if why:
            row.draft_failures += row.t >= len(row.replay)
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
    row.tail = hidden[path[-1]]
    return hidden
