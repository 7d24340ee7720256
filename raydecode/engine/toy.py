"""A tabulated model of enumerable truth: five tokens, every text's probability known. Public, for tests of methods.

    tokens 0..4 = "a" "b" "(" ")" <eos>
    hidden(context) = 8 numbers from a hash of the whole context;  logits = hidden @ U, less EOS_BIAS at <eos>

The context is read through the slot's cache, one hash per position, so that a wrong mask, fork or compaction shows in
the logits. The lane drives the same loop, walk, chain and draw as the torch engine: what is proved here holds there.

Inside it has the sites of a transformer of DEPTH layers, all tabulated too: "input" and "embedding" from the token,
"layer.i" from the context, the last of them the hidden numbers above and "final". An intervention's change of x runs on
as in a residual stream: to all later layers of its position, and by CARRY to later positions, through the cache, so
that a hook that was forgotten when a cache was rebuilt shows in the logits as well.

Blocks can be skipped: each one replaces the same share of the final numbers by those of another table, so that the
fewer are skipped the better the rest agrees with the whole. A column that was written with a block skipped is marked;
a call of the whole model that reads one gets wrong logits, as on a real model.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydecode.contracts import Needs
from raydecode.engine.cost import CostCurve
from raydecode.engine.lane import Chunk, Hook, Lane, Outputs
from raydecode.engine.loop import Loop
from raydecode.engine.pages import Pages
from raydecode.events import OutcomeEvent
from raydecode.randomness import derive, mix
from raydecode.request import Ids, Messages, Prompt, Request, Text
from raydecode.tree import TokenTree

VOCAB, WIDTH, DEPTH, EOS = 5, 8, 3, 4
PAGE = 8
TOKEN_BYTES = (b"a", b"b", b"(", b")", b"")
EOS_BIAS = 1.5
CARRY = 0.5
"""How much of a position's change the next layer adds at the position behind it."""

BLOCKS = tuple(f"{kind}.{i}" for i in range(DEPTH) for kind in ("attention", "mlp"))
SITES = ("input", "embedding", *(f"layer.{i}" for i in range(DEPTH)), "final")
LEVEL = {"input": 0, "embedding": 0, **{f"layer.{i}": i + 1 for i in range(DEPTH)}, "final": DEPTH}
STEP_S, TOKEN_COST = 1e-3, 0.02
"""What a forward costs, tabulated as well (for `drafter: auto`): seconds, and the part that each further token adds."""
ROOT = 0x70F
"""Key of the empty context."""

_U_DV = torch.tensor([[((mix(d * VOCAB + v) >> 11) / 2**52 - 1) * 1.4 for v in range(VOCAB)] for d in range(WIDTH)])


@functools.lru_cache(maxsize=1 << 16)
def _hidden(key: int) -> tuple[float, ...]:
    return tuple(((mix(key ^ mix(d)) >> 11) / 2**52 - 1) * 1.7 for d in range(WIDTH))


def _table(level: int, token: int, key: int) -> tuple[float, ...]:
    """x of a node at a level without any intervention: 0 the token's, 1 to DEPTH behind that many layers."""
    return _hidden(key if level == DEPTH else derive(level, key) if level else derive(ROOT, ROOT, token))


def _logits(hidden_MD: Tensor) -> Tensor:
    logits_MV = (hidden_MD[:, :, None] * _U_DV[None]).sum(1)  # elementwise: a row's bits do not depend on M
    logits_MV[:, EOS] -= EOS_BIAS
    return logits_MV


def logits(context: Sequence[int], skip: frozenset[str] = frozenset()) -> Tensor:
    """float32 [V]: the model's logits after `context`. The independent reference of every law."""
    key = derive(ROOT, *context)
    return _logits(_blurred(torch.tensor([_hidden(key)]), [key], *_lost(skip)))[0]


def _lost(skip: frozenset[str]) -> tuple[int, float]:
    """What skipping does: the key of the other table, and its share."""
    return (derive(ROOT, *(BLOCKS.index(block) for block in sorted(skip))), len(skip) / len(BLOCKS)) if skip else (0, 0)


def _blurred(final_MD: Tensor, key_M: Sequence[int], salt: int, share: float) -> Tensor:
    """The final numbers with a share of them taken from another table."""
    if not share:
        return final_MD
    return final_MD + share * (torch.tensor([_hidden(key ^ salt) for key in key_M]) - final_MD)


class ToyLane:
    """The table behind a paged cache: one key per column, in pages of PAGE tokens as on any lane.

    tokens: how many fit, at least one row of `context`; retain: tokens kept after their rows
    blur: share of another table in the logits: a model that agrees with the toy more or less, for drafts
    """

    page = PAGE
    eos: frozenset[int] = frozenset({EOS})
    token_bytes: Sequence[bytes] = TOKEN_BYTES
    sites: Sequence[str] = SITES
    blocks: Sequence[str] = BLOCKS

    def __init__(
        self, slots: int, context: int, tokens: int | None = None, retain: int = 1024, blur: float = 0.0
    ) -> None:
        self.slots, self.context, self.blur = slots, context, blur
        whole = -(-context // PAGE)
        count = slots * whole if tokens is None else max(tokens // PAGE, whole)
        self.pages = Pages(2 * slots, count, PAGE, retain // PAGE)
        self._length = [0] * 2 * slots
        self._cell: dict[tuple[int, int], tuple[int, Tensor | None]] = {}
        """(page, offset) -> the key, and what interventions did there: [levels, WIDTH], or None."""
        self._partial: set[tuple[int, int]] = set()
        """Columns that were written with a block skipped."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Any text: `a b ( )` as themselves, other bytes by their value modulo 4."""
        match prompt:
            case Ids(ids):
                return list(ids)
            case Text(text):
                return [TOKEN_BYTES.index(bytes([b])) if b in b"ab()" else b % 4 for b in text.encode()]
            case Messages(messages):
                return self.encode(Text("".join(str(m.get("content", "")) for m in messages)))

    def reserve(self, slot: int, start: int, length: int) -> bool:
        copies = self.pages.reserve(slot, start, length)
        for source, target in copies or ():
            self._cell |= {(target, i): self._cell[source, i] for i in range(PAGE) if (source, i) in self._cell}
            self._partial -= {(target, i) for i in range(PAGE)}
            self._partial |= {(target, i) for i in range(PAGE) if (source, i) in self._partial}
        return copies is not None

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        self._length[slot] = self.pages.adopt(slot, start, ids, salt)
        return self._length[slot]

    def publish(self, slot: int, ids: Sequence[int]) -> None:
        self.pages.publish(slot, ids)

    def forward(
        self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = (), skip: frozenset[str] = frozenset()
    ) -> Outputs:
        token_M: list[int] = []
        key_M: list[int] = []
        above_M: list[int | Tensor | None] = []  # a node of this call, what the cache holds of one, or nothing
        wanted: list[int] = []
        for chunk in chunks:
            fits = self.reserve(chunk.slot, chunk.start, chunk.start + len(chunk))
            assert fits, "the loop makes room first"
            assert self._length[chunk.slot] >= chunk.start, "a chunk continues its cache"
            self._length[chunk.slot] = chunk.start + len(chunk)
            base, first = chunk.start + len(chunk.prefix), len(token_M)
            tree = chunk.tree or TokenTree((), (), ())
            parents = [*range(chunk.start - 1, base - 1), *(base + parent for parent in tree.parent)]
            for i, (token, parent) in enumerate(zip((*chunk.prefix, *tree.token), parents, strict=True)):
                key, change = self._read(chunk.slot, parent, skip)
                above_M.append(first + parent - chunk.start if parent >= chunk.start else change)
                token_M.append(token)
                key_M.append(derive(key, token))
                where = self._at(chunk.slot, chunk.start + i)
                self._cell[where] = key_M[-1], None
                (self._partial.add if skip else self._partial.discard)(where)
            wanted += range(first + len(chunk.prefix), len(token_M))
        seen: dict[str, Tensor] = {}
        if hooks or any(isinstance(above, Tensor) for above in above_M):
            final_MD = self._changed(chunks, token_M, key_M, above_M, hooks, needs, seen)
        else:
            final_MD = torch.tensor([_hidden(key) for key in key_M])
            for site in needs.hidden:
                pairs = zip(token_M, key_M, strict=True)
                seen[site] = torch.tensor([_table(LEVEL[site], token, key) for token, key in pairs])
        final_MD = _blurred(_blurred(final_MD, key_M, *_lost(skip)), key_M, ROOT, self.blur)
        hidden = {site: x_MD[wanted] for site, x_MD in seen.items()}
        return Outputs(_logits(final_MD[wanted]), hidden, lambda x_ND, norm: _logits(x_ND))

    def _changed(
        self,
        chunks: Sequence[Chunk],
        token_M: list[int],
        key_M: list[int],
        above_M: Sequence[int | Tensor | None],
        hooks: Sequence[Hook],
        needs: Needs,
        seen: dict[str, Tensor],
    ) -> Tensor:
        """The final hidden numbers with interventions; fills `seen` and the cache's changes."""
        count, nodes = len(token_M), [m for m, above in enumerate(above_M) if isinstance(above, int)]
        change_LMD = torch.zeros(DEPTH + 1, count, WIDTH)
        x_MD = torch.empty(0)
        for level in range(DEPTH + 1):
            if level:
                carried_MD = torch.stack(
                    [a[level - 1] if isinstance(a, Tensor) else torch.zeros(WIDTH) for a in above_M]
                )
                carried_MD[nodes] = change_LMD[level - 1][[int(above_M[m]) for m in nodes]]  # type: ignore[arg-type]
                change_LMD[level] = change_LMD[level - 1] + CARRY * carried_MD
            x_MD = torch.tensor([_table(level, t, k) for t, k in zip(token_M, key_M, strict=True)]) + change_LMD[level]
            for site in SITES:
                if LEVEL[site] != level:
                    continue
                for hook in (hook for hook in hooks if hook.site == site):
                    index = torch.tensor(hook.nodes)
                    new_MD = x_MD.index_copy(0, index, hook.apply(x_MD[index]))
                    change_LMD[level] += new_MD - x_MD
                    x_MD = new_MD
                if site in needs.hidden:
                    seen[site] = x_MD
        at = 0
        for chunk in chunks:
            for column in range(chunk.start, chunk.start + len(chunk)):
                where = self._at(chunk.slot, column)
                self._cell[where] = self._cell[where][0], change_LMD[:, at]
                at += 1
        return x_MD

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        for i, node in enumerate(path):
            self._cell[self._at(slot, length + i)] = self._cell[self._at(slot, length + node)]
            assert self._at(slot, length + node) not in self._partial, "a kept node was computed by the whole model"
        self._length[slot] = length + len(path)

    def fork(self, source: int, target: int, length: int) -> None:
        self._length[target] = length
        self.pages.fork(source, target, length)

    def release(self, slot: int) -> None:
        self._length[slot] = 0
        self.pages.release(slot)

    def check(self, held: Sequence[int]) -> None:
        self.pages.check(held)

    def _read(self, slot: int, column: int, skip: frozenset[str]) -> tuple[int, Tensor | None]:
        """The key in a column; garbage where the whole model reads what a part of it wrote."""
        if column < 0:
            return ROOT, None
        where = self._at(slot, column)
        key, change = self._cell[where]
        return (key if skip or where not in self._partial else mix(key)), change

    def _at(self, slot: int, column: int) -> tuple[int, int]:
        """(page, offset) of a column."""
        return self.pages.tables[slot][column // PAGE], column % PAGE


class ToyEngine(Loop):
    """The toy lane as an engine.

    tokens: how many the cache holds
    lanes:  models to draft with; without any there is one, "toy", that agrees with this one more often than not
    step_s: seconds a step takes at least, to rehearse schedules
    poison: a prompt with this text kills the process while it holds a slot, to rehearse engine deaths
    hang:   a prompt with this text stops the engine for ever while it holds a slot, to rehearse the watchdog
    """

    name = "toy"
    promise = "bitwise"

    def __init__(
        self,
        *,
        slots: int = 32,
        context: int = 4096,
        tokens: int | None = None,
        lanes: Mapping[str, Lane] | None = None,
        step_s: float = 0.0,
        poison: str | None = None,
        hang: str | None = None,
        **loop: Any,
    ) -> None:
        further = {"toy": ToyLane(slots, context, tokens, blur=0.25)} if lanes is None else lanes
        loop.setdefault("curve", CostCurve((1, 2), (STEP_S, (1 + TOKEN_COST) * STEP_S), fixed=True))
        super().__init__(ToyLane(slots, context, tokens), lanes=further, **loop)
        self._step_s, self._poison, self._poisoned = step_s, poison, set[str]()
        self._hang, self._hanging = hang, set[str]()

    def submit(self, request: Request) -> None:
        if self._poison and self._poison in _plain(request.prompt):
            self._poisoned.add(request.id)
        if self._hang and self._hang in _plain(request.prompt):
            self._hanging.add(request.id)
        super().submit(request)

    def step(self) -> list[Any]:
        if self._step_s:
            time.sleep(self._step_s)
        events = super().step()
        held = {row.request for row in self.running} | {e.row.request for e in events if isinstance(e, OutcomeEvent)}
        if self._poisoned & held:
            time.sleep(0.05)  # a dying engine still lets what it said leave the process
            os.kill(os.getpid(), signal.SIGKILL)
        if self._hanging & held:
            threading.Event().wait()
        return events


def _plain(prompt: Prompt) -> str:
    match prompt:
        case Text(text):
            return text
        case Messages(messages):
            return "".join(str(dict(m) if isinstance(m, Mapping) else m) for m in messages)
        case _:
            return ""
