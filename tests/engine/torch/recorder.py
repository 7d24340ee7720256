"""A lane that remembers every logits row by the tokens that led to it: the law in its literal form.

"A node's logits depend on the tokens on its path only": two nodes with one path must have one digest, whatever the
batch, the chunks, the slot, the drafts. All scenarios of a test share one memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.loop import Loop
from raydecode.engine.torch.cache import Cache
from raydecode.engine.torch.lane import TorchLane
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.tree import TokenTree

SAMPLED = (Card("temperature", {"value": 0.8}), Card("top_p", {"p": 0.9}))


@dataclass
class Memory:
    """digest by path; compared: paths seen again; conflicts: paths whose bits changed."""

    digest: dict[tuple[int, ...], str] = field(default_factory=dict)
    compared: int = 0
    conflicts: list[tuple[int, ...]] = field(default_factory=list)

    def see(self, path: tuple[int, ...], digest: str) -> None:
        known = self.digest.setdefault(path, digest)
        self.compared += known is not digest
        if known != digest:
            self.conflicts.append(path)


class Recorder:
    """`lane` with `slots` slots and an empty cache of `tokens`; weights are shared. fed: tokens computed."""

    def __init__(
        self,
        lane: TorchLane,
        slots: int,
        memory: Memory,
        context: int | None = None,
        tokens: int | None = None,
        retain: int = 512,
    ) -> None:
        self.lane, self.memory, self.tokens = copy.copy(lane), memory, [()] * slots
        self.lane.slots, self.lane.context = slots, context or lane.context
        self.lane.cache = Cache(slots, self.lane.context, tokens, retain)
        self.slots, self.context, self.page = slots, self.lane.context, lane.page
        self.eos, self.token_bytes, self.sites = lane.eos, lane.token_bytes, lane.sites
        self.blocks = lane.blocks
        self.encode, self.reserve, self.fed = lane.encode, self.lane.reserve, 0
        self.publish, self.check = self.lane.publish, self.lane.check

    def forward(
        self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = (), skip: frozenset[str] = frozenset()
    ) -> Outputs:
        out = self.lane.forward(chunks, needs, hooks, skip)
        if skip:
            return out  # a draft's: nobody's text
        at = 0
        for chunk in chunks:
            assert len(self.tokens[chunk.slot]) >= chunk.start
            path = self.tokens[chunk.slot][: chunk.start] + chunk.prefix
            tree = chunk.tree or TokenTree((), (), ())
            for node in range(len(tree)):
                tokens = path + tuple(tree.token[i] for i in tree.path(node))
                self.memory.see(tokens, hashlib.md5(out.logits_MV[at].numpy().tobytes()).hexdigest())
                at += 1
            self.tokens[chunk.slot] = path + tree.token
            self.fed += len(chunk)
        return out

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        held = self.lane.adopt(slot, start, ids, salt)
        self.tokens[slot] = self.tokens[slot][:start] + tuple(ids[start:held])
        return held

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        self.tokens[slot] = self.tokens[slot][:length] + tuple(self.tokens[slot][length + node] for node in path)
        self.lane.keep(slot, length, path)

    def fork(self, source: int, target: int, length: int) -> None:
        self.tokens[target] = self.tokens[source][:length]
        self.lane.fork(source, target, length)

    def release(self, slot: int) -> None:
        self.tokens[slot] = ()
        self.lane.release(slot)


class Decoder(Loop):
    """The torch engine's loop over any lane; methods know it by this name."""

    name = "torch"


def ask(
    id: str,
    ids: Sequence[int],
    *,
    sampler: tuple[Card, ...] = SAMPLED,
    resume: tuple[tuple[int, ...], ...] = (),
    **spec: object,
) -> Request:
    return Request(id, id, Ids(tuple(ids)), DecodingSpec(sampler=sampler, seed=7, **spec), resume=resume)


def drain(
    loop: Loop, requests: Sequence[Request], cancel_at: dict[int, str] | None = None
) -> dict[tuple[str, int], OutcomeEvent]:
    """Run to the end; cancel_at: step number -> request id."""
    for request in requests:
        loop.submit(request)
    outcomes: dict[tuple[str, int], OutcomeEvent] = {}
    step = 0
    while loop.busy:
        for event in loop.step():
            if isinstance(event, OutcomeEvent):
                outcomes[event.row.request, event.row.sample] = event
        loop.check_integrity()
        step += 1
        if cancel_at and step in cancel_at:
            loop.cancel(cancel_at[step])
    return outcomes


def demo_prompts(root: Path, count: int, longest: int = 10_000) -> list[dict]:
    rows = [
        json.loads(line) for line in (root / "configs/data/quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    short = [row for row in rows if len(row["prompt"]) <= longest]
    return short[:: max(len(short) // count, 1)][:count]
