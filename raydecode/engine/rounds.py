"""Drafters' forwards: all generators of a step advance together, round by round, one ragged call per lane and round.

The lane "self" is the row's own: what a draft computes is written behind the committed tokens, where verification
writes over it before anything reads it. Other lanes (`further`) have caches of their own, which follow the row's text:
what was drafted and accepted stays, the rest is cut off, and what is missing is read with the next wish. A cache of a
draft is a cache: when memory is short, rows that do not draft now lose theirs, and then there is no draft.

A wish that is not allowed ends its generator (`Proposal.failed`); so does anything that raises on the way, for a draft
must not harm its row. Rounds are bounded by ROUNDS, what a row may feed by NODES and WINDOW.

Legend: M nodes of a call, V the target's vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydecode.contracts import Forward, Intervention, Needs, NodeOut
from raydecode.engine.host import ServiceHost
from raydecode.engine.inside import hooks, united
from raydecode.engine.lane import Chunk, Lane, Outputs
from raydecode.engine.rehearsal import Rehearsal
from raydecode.engine.rows import Row
from raydecode.engine.spelling import Spelling, spelling
from raydecode.engine.walk import Methods
from raydecode.request import RowId
from raydecode.tree import TokenTree

SELF = "self"

ROUNDS, NODES, WINDOW, CHOICES = 40, 256, 512, 64
"""Most rounds of a step; tokens that one row may feed in one wish; tokens of a window; choices of an item."""

Drafting = Generator[Forward, list[NodeOut], list[TokenTree]]


class NoRoom(Exception):
    """Memory or context is short: the row's answer is empty, which is nobody's fault."""


class BadWish(Exception):
    """A wish that the contract does not allow."""


@dataclass(slots=True)
class Proposal:
    """A drafter's generator over some rows. trees: what it returned; failed: why it did not."""

    rows: list[Row]
    drafting: Drafting
    lanes: tuple[str, ...] = ()
    trees: list[TokenTree] | None = None
    failed: Exception | None = None
    seconds: float = 0.0
    wish: Forward | None = None
    answer: list[NodeOut] = field(default_factory=list)

    def advance(self, clock: Callable[[], float]) -> None:
        """Send the answer and take the next wish."""
        began, self.wish = clock(), None
        try:
            self.wish = self.drafting.send(self.answer) if self.answer else next(self.drafting)
        except StopIteration as done:
            self.trees = done.value
        except Exception as error:  # a drafter's code may raise anything: no draft
            self.failed = error
        else:
            if self.wish is None:
                self.end(BadWish("a wish is a Forward, not None"))
        self.seconds += clock() - began

    def end(self, error: Exception) -> None:
        """No draft; the generator is closed."""
        self.wish, self.failed = None, error
        for _ in range(3):  # one may yield once more while it is closed
            with contextlib.suppress(RuntimeError):
                self.drafting.close()
                return


@dataclass(slots=True)
class Track:
    """What a slot of a lane holds. text: the row's context as the lane's ids; ids: its columns; sure: those of `text`
    that are committed. read: context tokens that are in `text`."""

    row: RowId
    text: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sure: int = 0
    read: int = 0
    skip: frozenset[str] = frozenset()

    def follow(self, row: Row, spell: Spelling | None) -> None:
        """Take in what the row committed since; drop columns that hold something else."""
        for token in row.context[self.read :]:
            self.text += spell.there(token) if spell else (token,)
        self.read = len(row.context)
        same, most = self.sure, min(len(self.ids), len(self.text) - 1)
        while same < most and self.ids[same] == self.text[same]:
            same += 1
        self.sure = same
        del self.ids[same:]


@dataclass(slots=True)
class Further:
    """A lane beside the row's own. spell: None where both count alike; tracks: by slot."""

    lane: Lane
    spell: Spelling | None
    tracks: dict[int, Track] = field(default_factory=dict)

    def track(self, row: Row) -> Track:
        """The row's, at its slot; another row's remains there are dropped."""
        found = self.tracks.get(row.slot)
        if found is None or found.row != row.id:
            if found is not None:
                self.lane.release(row.slot)
            found = self.tracks[row.slot] = Track(row.id)
        found.follow(row, self.spell)
        return found

    def reserve(self, slot: int, start: int, length: int, busy: Sequence[int]) -> None:
        """Room for columns; rows that do not draft now give theirs."""
        while not self.lane.reserve(slot, start, length):
            idle = next((other for other in self.tracks if other not in busy), None)
            if idle is None:
                raise NoRoom
            self.lane.release(idle)
            del self.tracks[idle]


@dataclass(slots=True)
class Feed:
    """A part of a call: a chunk, and the nodes that answer items. before: what the columns before the chunk hold.

    track: None for a window, whose nodes all answer one item; after: what its columns hold from the chunk on, then
    """

    proposal: Proposal
    row: Row
    chunk: Chunk
    ends: list[tuple[int, int]]
    before: list[int]
    track: Track | None = None
    after: list[int] = field(default_factory=list)

    @property
    def wish(self) -> Forward:
        assert self.proposal.wish is not None
        return self.proposal.wish

    def copy(self) -> Row:
        """The row as its interventions see it in a draft: a copy, so that what they raise ends no row."""
        return dataclasses.replace(self.row, context=self.before, history=None)


class Rounds:
    """The wishes of one engine's drafters. chunk: most tokens that a further lane reads per step to catch up."""

    def __init__(
        self,
        lane: Lane,
        further: Mapping[str, Lane],
        methods: Methods,
        intervention: Callable[[str], Intervention],
        host: ServiceHost,
        *,
        chunk: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lane, self._intervention, self._chunk, self._clock = lane, intervention, chunk, clock
        self._further = {
            name: Further(one, spelling(lane.token_bytes, lane.eos, one.token_bytes, one.eos, name))
            for name, one in further.items()
        }
        self._rehearsal = Rehearsal(methods, host)
        self._scratch: dict[RowId, Track] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Lanes that wishes may name."""
        return (SELF, *self._further)

    def ready(self, rows: Sequence[Row], lanes: Sequence[str]) -> list[Row]:
        """The rows that may draft on these lanes now. A further lane that lags far behind reads a part of the text."""
        if SELF in lanes:
            rows = [row for row in rows if not row.unread]
        for name in lanes:
            if name in self._further:
                rows = self._caught_up(self._further[name], rows)
        return list(rows)

    def run(self, proposals: Sequence[Proposal]) -> None:
        """Let all generators finish; each proposal then has trees, or failed."""
        self._scratch.clear()
        self._rehearsal.states.clear()
        for one in proposals:
            one.advance(self._clock)
        for _ in range(ROUNDS):
            asking = [one for one in proposals if one.wish is not None]
            if not asking:
                return
            self._answer(asking)
            for one in asking:
                if one.wish is not None:
                    one.advance(self._clock)
        for one in proposals:
            if one.wish is not None:
                one.end(BadWish(f"more than {ROUNDS} rounds in a step"))

    def release(self, row: Row) -> None:
        """The row ended: what lanes hold of it goes."""
        for further in self._further.values():
            for slot in [slot for slot, track in further.tracks.items() if track.row == row.id]:
                further.lane.release(slot)
                del further.tracks[slot]

    def check(self) -> None:
        """Invariants, for tests: further lanes hold what is tracked, and no page leaked."""
        for further in self._further.values():
            further.lane.check(list(further.tracks))

    # ------------------------------------------------------------------ one round
    def _answer(self, asking: Sequence[Proposal]) -> None:
        """Answer all wishes, or end their proposals."""
        calls: dict[tuple[str, frozenset[str], int], list[Proposal]] = {}
        for one in asking:
            assert one.wish is not None
            try:
                self._check(one, one.wish)
                key = one.wish.lane, one.wish.skip
                turn = 0  # drafters that share a row, whose columns serve one at a time, are answered in turns
                while _overlap(one, calls.get((*key, turn), ())):
                    turn += 1
                calls.setdefault((*key, turn), []).append(one)
            except Exception as error:  # not even a Forward, perhaps
                one.end(error)
        for (lane, skip, _), group in calls.items():
            began = self._clock()
            feeds: list[Feed] = []
            for one in group:
                feeds += self._feeds(one, lane, skip)
            try:
                if feeds:
                    self._call(lane, skip, feeds)
            except Exception as error:  # a draft must not harm its rows
                for one in group:
                    if one.wish is not None:
                        one.end(error)
            self._give_back(feeds)
            for one in group:
                one.seconds += (self._clock() - began) / len(group)

    def _give_back(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            if feed.track is None:
                self.lane.release(feed.chunk.slot)

    def _check(self, one: Proposal, wish: Forward) -> None:
        """Raise BadWish."""
        if not isinstance(wish, Forward):
            raise BadWish(f"a wish is a Forward, not {type(wish).__name__}")
        if wish.lane not in one.lanes or wish.lane not in self.names:
            raise BadWish(f"lane '{wish.lane}': the drafter declares {one.lanes}, here are {self.names}")
        strange = wish.skip - set(self.lane.blocks if wish.lane == SELF else ())
        if strange:
            raise BadWish(f"skip: {min(strange)} is no block of lane '{wish.lane}'")
        if (wish.window or wish.hidden) and wish.lane != SELF:
            raise BadWish(f"window and hidden are of lane 'self', not of '{wish.lane}'")
        if not set(wish.hidden) <= set(self.lane.sites):
            raise BadWish(f"hidden: {wish.hidden}, the lane has {self.lane.sites}")
        size = len(self.lane.token_bytes)
        sizes = (
            (wish.top_k, size),
            (wish.choose, CHOICES),
            (wish.window, WINDOW),
            (len(wish.items), NODES * len(one.rows)),
        )
        if any(not 0 <= asked <= most for asked, most in sizes) or not wish.items:
            raise BadWish(f"top_k, choose, window, items: {[asked for asked, _ in sizes]} of at most {sizes}")
        rows = {row.id: row for row in one.rows}
        for id, path in wish.items:
            if id not in rows:
                raise BadWish(f"row {id} is not this drafter's")
            if len(path) > min(NODES, rows[id].limit - rows[id].t) or any(not 0 <= int(token) < size for token in path):
                raise BadWish(f"row {id}: a path of {len(path)} tokens, {rows[id].limit - rows[id].t} may follow")

    def _feeds(self, one: Proposal, lane: str, skip: frozenset[str]) -> list[Feed]:
        """What the wish adds to the call, its room reserved; a row without room has nothing, and empty answers."""
        wish = one.wish
        assert wish is not None
        by_row: dict[RowId, list[tuple[int, tuple[int, ...]]]] = {}
        for item, (id, path) in enumerate(wish.items):
            by_row.setdefault(id, []).append((item, path))
        busy = [row.slot for row in one.rows]
        out: list[Feed] = []
        one.answer = [NodeOut((), ())] * len(wish.items)
        try:
            for row in (row for row in one.rows if row.id in by_row):
                with contextlib.suppress(NoRoom):
                    out.append(self._paths(one, row, by_row[row.id], lane, skip, busy))
                    if wish.window and len(row.context) > 1:
                        out.append(self._window(one, row, by_row[row.id][0][0], wish.window))
        except BadWish as error:
            self._give_back(out)
            one.end(error)
            return []
        return out

    def _paths(
        self,
        one: Proposal,
        row: Row,
        items: Sequence[tuple[int, tuple[int, ...]]],
        name: str,
        skip: frozenset[str],
        busy: Sequence[int],
    ) -> Feed:
        """A row's paths as one chunk: what all share and is not held yet, then a tree."""
        further = self._further.get(name)
        track = further.track(row) if further else self._own(row, skip)
        spell = further.spell if further else None
        tails = [[id for token in path for id in (spell.there(token) if spell else (token,))] for _, path in items]
        common = next(
            (d for d in range(min(map(len, tails))) if len({tail[d] for tail in tails}) > 1), min(map(len, tails))
        )
        root = len(track.text) - 1 + common  # the last column that all share: the chunk's tree hangs there
        shared = track.text[track.sure :] + tails[0][:common]
        held = track.sure
        while held < min(root, len(track.ids)) and track.ids[held] == shared[held - track.sure]:
            held += 1
        tree = TokenTree.paths(shared[root - track.sure], [tail[common:] for tail in tails])
        chunk = Chunk(row.slot, held, tuple(shared[held - track.sure : root - track.sure]), tree)
        end = root + len(tree)
        if len(tree) > NODES:
            raise BadWish(f"row {row.id}: {len(tree)} tokens in one wish")
        if further is None:
            if end > self.lane.context or not self.lane.reserve(row.slot, held, end):
                raise NoRoom
        elif end > further.lane.context:
            raise NoRoom
        else:
            further.reserve(row.slot, held, end, busy)
        chain = next((i for i in range(1, len(tree)) if tree.parent[i] != i - 1), len(tree))
        ends = [(item, _node(tree, tail[common:])) for (item, _), tail in zip(items, tails, strict=True)]
        return Feed(one, row, chunk, ends, track.ids[:held], track, [*chunk.prefix, *tree.token[:chain]])

    def _own(self, row: Row, skip: frozenset[str]) -> Track:
        """Scratch columns of the lane "self", of this step and of one set of blocks."""
        track = self._scratch.get(row.id)
        if track is None or track.skip != skip:
            text = row.context
            track = self._scratch[row.id] = Track(row.id, text, text[:-1], len(text) - 1, len(text), skip)
        return track

    def _window(self, one: Proposal, row: Row, item: int, asked: int) -> Feed:
        """The last committed tokens once more, in a fork, so that the row's own columns stay what they are."""
        end = len(row.context) - 1
        start = max(end - asked, 0)
        slot = self.lane.slots + row.slot
        self.lane.fork(row.slot, slot, start)
        if not self.lane.reserve(slot, start, end):
            self.lane.release(slot)
            raise NoRoom
        tree = TokenTree.chain(row.context[start:end])
        return Feed(one, row, Chunk(slot, start, (), tree), [(item, node) for node in range(len(tree))], row.context)

    def _call(self, name: str, skip: frozenset[str], feeds: Sequence[Feed]) -> None:
        """One forward; its outputs become the answers of all proposals that take part."""
        further = self._further.get(name)
        chunks = [feed.chunk for feed in feeds]
        for feed in feeds:
            if feed.track:
                del feed.track.ids[feed.chunk.start :]
        if further:
            outputs = further.lane.forward(chunks, Needs())
        else:
            sites = {site for feed in feeds for site in feed.wish.hidden}
            needs = united([feed.row for feed in feeds if feed.wish.choose]) | Needs(hidden=tuple(sites))
            acting = []
            if any(feed.row.spec.interventions for feed in feeds):
                acting = hooks(chunks, {feed.chunk.slot: feed.copy() for feed in feeds}, self._intervention)
            outputs = self.lane.forward(chunks, needs, acting, skip)
        for feed in feeds:
            if feed.track:
                feed.track.ids += feed.after
        answers = self._outs(feeds, outputs, further)
        for feed, part in zip(feeds, answers, strict=True):
            mine = feed.proposal.answer
            if feed.track:
                for (item, _), out in zip(feed.ends, part, strict=True):
                    mine[item] = out
            else:  # behind the row's paths
                item = feed.ends[0][0]
                mine[item] = dataclasses.replace(mine[item], window=tuple(part))

    def _outs(self, feeds: Sequence[Feed], outputs: Outputs, further: Further | None) -> list[list[NodeOut]]:
        """Per feed the NodeOuts of its nodes."""
        asked: list[tuple[Feed, int, int]] = []  # feed, item, node of the call
        base = 0
        for feed in feeds:
            asked += [(feed, item, base + node) for item, node in feed.ends]
            base += len(feed.chunk.tree or ())
        raw_MV = outputs.logits_MV[[node for _, _, node in asked]]
        spell, size = (further.spell if further else None), len(self.lane.token_bytes)
        raw_MV = spell.back(raw_MV) if spell else _sized(raw_MV, size)
        k_M = [min(feed.wish.top_k, size) for feed, _, _ in asked]
        ids_MK: list[list[int]] = [[] for _ in asked]
        logp_MK: list[list[float]] = [[] for _ in asked]
        if max(k_M):
            values, indices = raw_MV.topk(max(k_M), dim=1) if max(k_M) > 1 else raw_MV.max(1, keepdim=True)
            ids_MK, logp_MK = indices.tolist(), (values - raw_MV.logsumexp(1, keepdim=True)).tolist()
        choices: dict[int, tuple[int, ...]] = {}
        choosing = [m for m, (feed, _, _) in enumerate(asked) if feed.wish.choose and feed.track]
        if choosing:
            places = [(asked[m][0].row, asked[m][0].wish.items[asked[m][1]][1]) for m in choosing]
            counts = [asked[m][0].wish.choose for m in choosing]
            look = (None, ()) if further else (outputs, [asked[m][2] for m in choosing])
            choices = dict(zip(choosing, self._rehearsal.choose(places, raw_MV[choosing], counts, *look), strict=True))
        out: list[list[NodeOut]] = [[] for _ in feeds]
        at = {id(feed): f for f, feed in enumerate(feeds)}
        for m, (feed, _, node) in enumerate(asked):
            hidden = {site: outputs.hidden[site][node].clone() for site in feed.wish.hidden}
            one = NodeOut(tuple(ids_MK[m][: k_M[m]]), tuple(logp_MK[m][: k_M[m]]), hidden, choices.get(m, ()))
            out[at[id(feed)]].append(one)
        return out

    def _caught_up(self, further: Further, rows: Sequence[Row]) -> list[Row]:
        """Rows whose text the lane has read up to `chunk` tokens; the others read on, one call for all."""
        budget, out, chunks, behind = self._chunk, [], [], []
        busy = [row.slot for row in rows]
        for row in rows:
            track = further.track(row)
            lag = len(track.text) - 1 - track.sure
            if not track.text or len(track.text) >= further.lane.context:
                continue
            if not track.ids and lag >= further.lane.page:  # an equal beginning was read already
                track.sure = further.lane.adopt(row.slot, 0, track.text[:-1])
                track.ids = track.text[: track.sure]
                lag -= track.sure
            if lag <= budget:
                budget -= lag
                out.append(row)
                continue
            take, budget = budget, 0
            try:
                further.reserve(row.slot, track.sure, track.sure + take, busy)
            except NoRoom:
                continue
            if take:
                chunks.append(Chunk(row.slot, track.sure, tuple(track.text[track.sure : track.sure + take]), None))
                behind.append((track, take))
        if chunks:
            further.lane.forward(chunks, Needs())
            for track, take in behind:
                track.ids = track.text[: track.sure + take]
                track.sure += take
        for row in rows:
            track = further.tracks[row.slot]
            if track.ids and track.sure >= further.lane.page:
                further.lane.publish(row.slot, track.ids[: track.sure])
        return out


def _overlap(one: Proposal, others: Sequence[Proposal]) -> bool:
    """Whether a row of `one` is among those of `others`."""
    return any(row is other for row in one.rows for proposal in others for other in proposal.rows)


def _node(tree: TokenTree, path: Sequence[int]) -> int:
    """The node at the end of a path below the root."""
    node = 0
    for token in path:
        child = tree.child(node, token)
        assert child is not None
        node = child
    return node


def _sized(raw_MW: Tensor, size: int) -> Tensor:
    """Logits of a vocabulary that is padded at its end, or not: cut, or filled with -inf."""
    width = raw_MW.shape[1]
    if width >= size:
        return raw_MW[:, :size]
    return torch.nn.functional.pad(raw_MW, (0, size - width), value=-torch.inf)
