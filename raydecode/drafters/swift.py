"""SWIFT, self-speculation by skipped layers (Xia et al., arXiv:2410.06916): the row's own model, in part, drafts.

A set of `skip` * 2 (L - 2) blocks is left out: attention and feed-forward parts, chosen one by one among all layers but
the first and the last. What is left reads the target's own keys and values and drafts a spine, token by token:

    spine      what the row itself would choose on the reduced model's logits (greedy: its likeliest token)
    siblings   up to `siblings` - 1 others at each node, never continued: next choices, then likely tokens
    stop       behind a node whose likeliest token has less than `confidence`, after `depth` tokens, at an end of text
    est        the probability of the likeliest token for the spine, their own for siblings

The set is found while rows are served. Every `interval` steps a candidate and the best set so far answer what was
said at the last `window` tokens of one row, teacher-forced; matchness = share of those tokens that a set would have
said. Candidates: random, of equal size, and every 25th the one with the greatest mean + KAPPA * deviation of a Gaussian
process over the sets tried so far (RBF over the sets as vectors, noise ALPHA), among POOL random ones and POOL sets one
swap away from the best. The search ends for good at matchness > `enough`, after `tries`, or after `patience` tries in
vain.

Not the paper's: both sets are scored on the same window, for scores of two windows say nothing of the sets; the window
slides; the process models the difference of the two scores and is asked at sets instead of in between. Start: every
second layer, attention and feed-forward, until the number is reached.

Changes the text: never. State: the search, shared by all rows of the engine. Cost: per drafted token a forward with
1 - `skip` of the blocks (embedding and output layer are never left out), and two over `window` tokens per try.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from raydecode import registry
from raydecode.contracts import Forward, Needs, NodeOut, RowView, StepRecord
from raydecode.contracts import Options as Given
from raydecode.tree import TokenTree

KAPPA, ALPHA = 2.5, 1e-2
"""Weight of the deviation; variance of the noise. Both the paper's code's."""

BAYES, POOL, REMEMBERED = 25, 128, 256
"""Every how many tries the process is asked; sets it is asked about, of each kind; tries it knows."""

Blocks = frozenset[str]


@dataclass(slots=True)
class Search:
    """The search for a set of blocks. tried: (set, its matchness less the best set's on the same window)."""

    options: Given
    blocks: tuple[str, ...] = ()
    best: Blocks = frozenset()
    score: float = 0.0
    steps: int = 0
    tries: int = 0
    vain: int = 0
    done: bool = False
    tried: list[tuple[Blocks, float]] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0x5717F7))

    def begin(self, blocks: Sequence[str]) -> None:
        """The blocks that may go, and the first set."""
        layers = [int(block.split(".")[1]) for block in blocks]
        inner = (block for block, layer in zip(blocks, layers, strict=True) if 0 < layer < max(layers))
        self.blocks = tuple(inner)
        odd = sorted(self.blocks, key=lambda block: (int(block.split(".")[1]) % 2 == 0, self.blocks.index(block)))
        self.best = frozenset(odd[: int(self.options["skip"] * len(self.blocks))])
        self.done = not (self.options["tries"] and 0 < len(self.best) < len(self.blocks))

    def due(self) -> bool:
        """Whether this step tries a set."""
        self.steps += 1
        return not self.done and self.steps % self.options["interval"] == 0

    def candidate(self) -> Blocks:
        """Another set of as many blocks."""
        if self.tries % BAYES or len(self.tried) < 2:
            return self._random()
        pool = [self._random() for _ in range(POOL)] + [self._swapped() for _ in range(POOL)]
        upper = _upper(self._vectors([one for one, _ in self.tried]), self._gains(), self._vectors(pool))
        return pool[int(upper.argmax())]

    def tell(self, candidate: Blocks, score: float, best_score: float) -> None:
        """What the two sets scored on one window."""
        self.tries += 1
        self.tried = [*self.tried, (candidate, score - best_score)][-REMEMBERED:]
        self.score, self.vain = best_score, self.vain + 1
        if score > best_score:
            self.best, self.score, self.vain = candidate, score, 0
            self.tried = [(one, gain - (score - best_score)) for one, gain in self.tried]
        full = self.tries >= self.options["tries"] or self.vain >= self.options["patience"]
        self.done = full or self.score > self.options["enough"]

    def _random(self) -> Blocks:
        return frozenset(self.dice.sample(self.blocks, len(self.best)))

    def _swapped(self) -> Blocks:
        out = self.dice.choice(sorted(self.best))
        into = self.dice.choice([block for block in self.blocks if block not in self.best])
        return (self.best - {out}) | {into}

    def _gains(self) -> Any:
        import numpy as np

        return np.array([gain for _, gain in self.tried])

    def _vectors(self, sets: Sequence[Blocks]) -> Any:
        import numpy as np

        return np.array([[block in one for block in self.blocks] for one in sets], dtype=np.float64)


def _upper(seen: Any, gains: Any, asked: Any) -> Any:
    """mean + KAPPA * deviation at `asked` of a Gaussian process through (seen, gains); sets that differ by a tenth of
    their blocks are one length apart."""
    import numpy as np

    scale = seen.sum(1).max() / 5

    def kernel(a: Any, b: Any) -> Any:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * scale))

    spread = max(float(gains.std()), 1e-3)
    inverse = np.linalg.inv(kernel(seen, seen) + ALPHA * np.eye(len(seen)))
    cross = kernel(asked, seen)
    mean = gains.mean() + cross @ inverse @ (gains - gains.mean())
    variance = 1 - np.einsum("as,st,at->a", cross, inverse, cross)
    return mean + KAPPA * spread * np.sqrt(np.maximum(variance, 0))


@registry.register("drafters", paper="arXiv:2410.06916", exact=True)
class Swift:
    """SWIFT: the model itself with layers skipped drafts; the layers are searched while rows are served."""

    class Options(registry.Options):
        skip: float = Field(
            default=0.45, ge=0, le=0.95, description="share of the blocks left out", examples=[0.45, 0.2]
        )
        depth: int = Field(default=8, ge=1, le=25, description="longest draft, tokens", examples=[8, 3])
        confidence: float = Field(
            default=0.8,
            ge=0,
            le=1,
            description="least probability of the likeliest token to go on",
            examples=[0.8, 0.0],
        )
        siblings: int = Field(default=1, ge=1, le=10, description="tokens drafted per depth", examples=[1, 3])
        window: int = Field(default=32, ge=1, le=512, description="tokens that score a set of blocks", examples=[32, 4])
        interval: int = Field(default=1, ge=1, le=100_000, description="steps per try of a set", examples=[1])
        tries: int = Field(default=1000, ge=0, le=100_000, description="most tries", examples=[1000, 6])
        patience: int = Field(default=300, ge=1, le=100_000, description="tries in vain that end it", examples=[300])
        enough: float = Field(default=0.95, ge=0, le=1, description="matchness that ends it", examples=[0.95])

    needs = Needs(lanes=("self",))
    scope = "namespace"

    def open_shared(self) -> dict[str, Search]:
        return {}

    def open(self, row: RowView, options: Given) -> int:
        return 0

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: dict[str, Search], options: Given
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        search = shared.setdefault(repr(sorted(options.items())), Search(options))
        if not rows[0].blocks:  # a model whose parts have no names here
            return [TokenTree.root(row.pending) for row in rows]
        if not search.blocks:
            search.begin(rows[0].blocks)
        row = max(rows, key=lambda row: row.t)
        if row.t > options["window"] and search.due():
            yield from _try(search, row)
        drafts = [
            _Draft(row, min(budget, options["depth"] * options["siblings"]))
            for row, budget in zip(rows, budgets, strict=True)
        ]
        going = [draft for draft in drafts if draft.room]
        most = options["siblings"]
        for _ in range(options["depth"]):
            if not going:
                break
            items = tuple((draft.row.id, tuple(draft.spine)) for draft in going)
            outs = yield Forward("self", items, skip=search.best, top_k=most, choose=most)
            for draft, out in zip(going, outs, strict=True):
                draft.grow(out, most)
            going = [d for d in going if d.room and d.sure >= options["confidence"] and d.spine[-1] not in d.row.ends]
        return [draft.tree() for draft in drafts]

    def observe(self, records: Sequence[StepRecord], shared: dict[str, Search], options: Given) -> list[Any]:
        return [record.state for record in records]


def _try(search: Search, row: RowView) -> Generator[Forward, list[NodeOut], None]:
    """Score a candidate and the best set on the same tokens of one row."""
    candidate, scores = search.candidate(), []
    for blocks in (candidate, search.best):
        (out,) = yield Forward("self", ((row.id, ()),), skip=blocks, window=search.options["window"])
        if not out.window:
            return  # memory is short
        said = row.context[len(row.context) - len(out.window) :]
        hits = sum(one.top_ids[0] == token for one, token in zip(out.window, said, strict=True))
        scores.append(hits / len(said))
    search.tell(candidate, *scores)


@dataclass(slots=True)
class _Draft:
    """A row's draft as it grows. room: nodes that it may still take."""

    row: RowView
    room: int
    spine: list[int] = field(default_factory=list)
    nodes: list[tuple[int, int, float]] = field(default_factory=list)
    sure: float = 1.0
    tip: int = 0

    def grow(self, out: NodeOut, most: int) -> None:
        """The next token of the spine, and its siblings."""
        chances = {id: math.exp(logp) for id, logp in zip(out.top_ids, out.top_logp, strict=True)}
        found = list(dict.fromkeys((*out.choice, *out.top_ids)))[: min(most, self.room)]
        if not found:
            self.room = 0
            return
        self.sure = math.exp(out.top_logp[0])
        above, self.tip = self.tip, len(self.nodes) + 1
        self.spine.append(found[0])
        for place, id in enumerate(found):
            self.nodes.append((id, above, self.sure if not place else min(chances.get(id, 0.05), 1 - self.sure)))
        self.room -= len(found)

    def tree(self) -> TokenTree:
        tokens, parents, est = zip(*((self.row.pending, -1, 1.0), *self.nodes), strict=True)
        return TokenTree(tokens, parents, est)
