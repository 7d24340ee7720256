"""Where the tokens of one call lie, and which products their attention takes: made once, the same for all layers.

Every node reads its keys at the columns that plain decoding would use, page by page. Rows share products:

    Span      many new tokens of one row (prompt, replay): their own products over the row's pages
    Segment   pages that lie side by side, each with its own few query nodes: the rest, all rows together
    Tails     what a branching draft needs beyond that: for each root-to-leaf path the columns from the last page
              boundary on, gathered in the order of the path. So a node's logits are the bits of the chain of its path,
              and what is copied is less than PAGE + depth columns per path, never a context.

A page that several rows hold (an equal beginning) is read once, for all their nodes.

Legend: M nodes of the call, N those of Segments and Tails, J pages of a product, T query nodes per page, H heads,
K key heads, G = H/K, R = T * G filled up to whole tiles, O pages of the longest row, S columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from raydecode.engine.torch.cache import PAGE, Cache
from raydecode.tree import TokenTree

TILE = 8
MANY = 32
"""A run of more tokens gets products of its own."""

SPARE, OVERHEAD = 1.5, 16
"""A shared product may read SPARE times the pages it needs, and OVERHEAD more: what a product of its own would cost."""


@dataclass(frozen=True, slots=True)
class Run:
    """New tokens of one slot, from column `start` and node `first` of the call on: a chain, then `tree`, if any."""

    slot: int
    start: int
    first: int
    prefix: int
    tree: TokenTree | None = None

    @property
    def length(self) -> int:
        return self.prefix + (len(self.tree) if self.tree else 0)

    @property
    def branches(self) -> bool:
        return self.tree is not None and self.tree.parent != tuple(range(-1, len(self.tree) - 1))

    def parts(self) -> list[Run]:
        """A long chain before a tree that branches goes by itself."""
        if self.prefix <= MANY or not self.branches:
            return [self]
        chain = Run(self.slot, self.start, self.first, self.prefix)
        return [chain, Run(self.slot, self.start + self.prefix, self.first + self.prefix, 0, self.tree)]

    def positions(self) -> list[int]:
        """The column that each token has in the chain of its own path."""
        base = self.start + self.prefix
        return [*range(self.start, base), *(base + depth for depth in (self.tree.depth() if self.tree else ()))]


@dataclass(frozen=True, slots=True)
class Span:
    """Nodes first..end of the call, a chain; `page_J`: the row's pages."""

    first: int
    end: int
    page_J: Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """One batch of products: pages low..high of the pool, or (low = -1) gathered columns `tail`, for each key head.

    Row x of X = J * K * R: of the query flattened to [M * H], of the weights [N * H * O], of the parts [O * N * H + 1].
    Rows that fill up a tile read row 0 and end in the last part.
    """

    low: int
    high: int
    tail: tuple[Tensor, Tensor] | None
    rows: int
    query_X: Tensor
    weight_X: Tensor
    part_X: Tensor

    def pages(self, pool: Tensor) -> Tensor:
        """[J * K, PAGE, D] of a layer's keys or values."""
        if self.tail is None:
            return pool[self.low : self.high].flatten(0, 1)
        page_JS, offset_JS = self.tail
        heads = torch.arange(pool.shape[1], device=pool.device)
        return pool[page_JS[:, None], heads[:, None], offset_JS[:, None]].flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Products:
    """score_Y: for each of N * H * O (node, head, page) the row among all segments' scores, 0 where there is none."""

    segments: list[Segment]
    score_Y: Tensor


@dataclass(slots=True)
class _Job:
    """A page, its number within its text, and the nodes that read it. columns: of a path's tail, as (page, offset)."""

    number: int
    nodes: list[int]
    page: int = -1
    columns: list[tuple[int, int]] = field(default_factory=list)


class Layout:
    """The runs of one call over a cache; masks are made once per window.

    few_N: the nodes that Segments serve; alone: they are all nodes of the call
    """

    def __init__(self, cache: Cache, runs: Sequence[Run], device: torch.device | str = "cpu") -> None:
        self.cache, self._device = cache, device
        tables = cache.pages.tables
        runs = [part for run in runs for part in run.parts()]
        places = [divmod(run.start + i, PAGE) for run in runs for i in range(run.length)]
        slots = [run.slot for run in runs for _ in range(run.length)]
        positions = [position for run in runs for position in run.positions()]
        self.size = len(places)
        self.page_M = self._tensor([tables[slot][page] for slot, (page, _) in zip(slots, places, strict=True)])
        self.offset_M = self._tensor([offset for _, offset in places])
        self.position_M = self._tensor(positions)
        self.spans: list[Span] = []
        self._jobs: list[_Job] = []
        few: list[int] = []
        shared: dict[int, _Job] = {}
        for run in runs:
            table = tables[run.slot]
            if run.length > MANY and not run.branches:
                used = table[: -(-(run.start + run.length) // PAGE)]
                self.spans.append(Span(run.first, run.first + run.length, self._tensor(used)))
                continue
            mine = range(len(few), len(few) + run.length)
            few += range(run.first, run.first + run.length)
            whole = (run.start + run.prefix) // PAGE if run.branches else -(-(run.start + run.length) // PAGE)
            for number, page in enumerate(table[:whole]):
                shared.setdefault(page, _Job(number, [], page)).nodes.extend(mine)
            if run.branches:
                self._jobs += _tails(run, table, mine.start)
        self._jobs += [shared[page] for page in sorted(shared)]
        self._close(few)

    def _close(self, few: list[int]) -> None:
        """What follows from the spans, the jobs and the nodes that they serve."""
        self.few_N = self._tensor(few)
        self.few = slice(0, len(few)) if few == list(range(len(few))) else self.few_N
        self.alone = len(few) == self.size
        self.last_N = self.position_M[self.few_N]
        self.longest = max((job.number + 1 for job in self._jobs), default=0)
        self._products: dict[tuple[int, int], Products] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def products(self, heads: int, group: int) -> Products:
        """heads: K; group: G. Pages share a product if their query rows fill equally many tiles."""
        if (heads, group) not in self._products:
            classes: dict[tuple[int, bool], list[_Job]] = {}
            for job in self._jobs:
                classes.setdefault((-(-len(job.nodes) * group // TILE), job.page < 0), []).append(job)
            score_Y = self._tensor([0]).repeat(len(self.few_N) * heads * group * self.longest)
            segments: list[Segment] = []
            base = 0
            for part in (part for jobs in classes.values() for part in _neighbours(jobs)):
                segment = self._segment(part, heads, group)
                count = segment.query_X.numel()
                real = segment.part_X < score_Y.numel()
                score_Y[segment.weight_X[real]] = torch.arange(base, base + count, device=self._device)[real]
                base += count
                segments.append(segment)
            self._products[heads, group] = Products(segments, score_Y)
        return self._products[heads, group]

    def hidden_few(self, window: int | None) -> Tensor:
        """bool [N, 1, 1, S], True = not attended to."""
        if (-1, window) not in self._masks:
            self._masks[-1, window] = self._hidden(self.last_N, self.longest, window)[:, None, None]
        return self._masks[-1, window]

    def hidden_span(self, span: Span, copies: int, rows: int, window: int | None) -> Tensor:
        """bool [rows, S]: `copies` times the span's tokens, then padding that sees all."""
        if (span.first, window) not in self._masks:
            hidden_TS = self._hidden(self.position_M[span.first : span.end], span.page_J.numel(), window)
            padding = hidden_TS.new_zeros(rows - copies * hidden_TS.shape[0], hidden_TS.shape[1])
            self._masks[span.first, window] = torch.cat([*[hidden_TS] * copies, padding])
        return self._masks[span.first, window]

    def _hidden(self, last: Tensor, pages: int, window: int | None) -> Tensor:
        """True where column > last, or outside the window that ends there."""
        column = torch.arange(pages * PAGE, device=self._device)
        hidden = column > last[..., None]
        return hidden if window is None else hidden | (column <= last[..., None] - window)

    def _segment(self, jobs: list[_Job], heads: int, group: int) -> Segment:
        tail, low, high = None, jobs[0].page, jobs[-1].page + 1
        if low < 0:
            pages, offsets = ([[place[i] for place in job.columns] for job in jobs] for i in (0, 1))
            tail, high, places = (self._tensor(pages), self._tensor(offsets)), -1, list(enumerate(jobs))
        else:
            places = [(job.page - low, job) for job in jobs]
        count, width = places[-1][0] + 1, max(len(job.nodes) for job in jobs)
        nodes, numbers = [[-1] * width for _ in range(count)], [0] * count
        for j, job in places:
            nodes[j][: len(job.nodes)], numbers[j] = job.nodes, job.number
        node_JT, number_J = self._tensor(nodes), self._tensor(numbers)
        head_KG = torch.arange(heads * group, device=self._device).view(heads, 1, group)

        def rows(first_JT: Tensor, step: int, filler: int) -> Tensor:
            """first_JT + step * head as [J, K, R] flattened, `filler` where there is no node."""
            found = torch.where(node_JT[:, None, :, None] < 0, filler, first_JT[:, None, :, None] + step * head_KG)
            return pad(found.flatten(2), (0, -(width * group) % TILE), value=filler).flatten()

        total = heads * group
        query_X = rows(self.few_N[node_JT.clamp_min(0)] * total, 1, 0)
        weight_X = rows(node_JT * (total * self.longest) + number_J[:, None], self.longest, 0)
        nodes_N = len(self.few_N)
        part_X = rows((number_J[:, None] * nodes_N + node_JT) * total, 1, nodes_N * total * self.longest)
        return Segment(low, high, tail, width * group + -(width * group) % TILE, query_X, weight_X, part_X)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class Across(Layout):
    """The same for what rows read and never write: each node of a run sees all `length[slot]` columns of its slot."""

    def __init__(
        self, cache: Cache, runs: Sequence[Run], length: Mapping[int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.cache, self._device = cache, device
        self.size = sum(run.length for run in runs)
        self.position_M = self._tensor([length[run.slot] - 1 for run in runs for _ in range(run.length)])
        self.spans = []
        few: list[int] = []
        shared: dict[int, _Job] = {}
        for run in runs:
            table = cache.pages.tables[run.slot]
            if run.length > MANY:
                self.spans.append(Span(run.first, run.first + run.length, self._tensor(table)))
                continue
            mine = range(len(few), len(few) + run.length)
            few += range(run.first, run.first + run.length)
            for number, page in enumerate(table):
                shared.setdefault(page, _Job(number, [], page)).nodes.extend(mine)
        self._jobs = [shared[page] for page in sorted(shared)]
        self._close(few)


def _tails(run: Run, table: Sequence[int], first: int) -> Iterator[_Job]:
    """The last columns of every root-to-leaf path; a node is computed on the first path that it lies on.

    first: the number of the run's first node among the few. Columns behind a leaf repeat the root's and are hidden.
    """
    assert run.tree is not None
    base = run.start + run.prefix
    whole = base // PAGE
    done: set[int] = set()
    for leaf in sorted(set(range(len(run.tree))) - set(run.tree.parent)):
        path = run.tree.path(leaf)
        fresh = [node for node in path if node not in done]
        nodes = [first + run.prefix + node for node in fresh]
        if not done:
            nodes = [*range(first, first + run.prefix), *nodes]
        done.update(fresh)
        columns = [*range(whole * PAGE, base), *(base + node for node in path)]
        columns += [base] * (-len(columns) % PAGE)
        places = [(table[column // PAGE], column % PAGE) for column in columns]
        for i in range(0, len(places), PAGE):
            yield _Job(whole + i // PAGE, nodes, columns=places[i : i + PAGE])


def _neighbours(jobs: list[_Job]) -> Iterator[list[_Job]]:
    """Cut where the pages read would be more than SPARE times those needed, plus OVERHEAD. Tails are dense anyway."""
    part: list[_Job] = []
    for job in jobs:
        if part and job.page >= 0 and job.page + 1 - part[0].page > SPARE * (len(part) + 1) + OVERHEAD:
            yield part
            part = []
        part.append(job)
    if part:
        yield part
