"""A tabulated model of enumerable truth: five tokens, every text's probability known. Public, for tests of methods.

    tokens 0..4 = "a" "b" "(" ")" <eos>
    hidden(context) = 8 numbers from a hash of the whole context;  logits = hidden @ U, less EOS_BIAS at <eos>

The context is read through the slot's cache, one hash per position, so that a wrong mask, fork or compaction shows in
the logits. The lane drives the same loop, walk, chain and draw as the torch engine: what is proved here holds there.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.loop import Loop
from raydecode.events import OutcomeEvent
from raydecode.randomness import derive, mix
from raydecode.request import Ids, Messages, Prompt, Request, Text

VOCAB, WIDTH, EOS = 5, 8, 4
TOKEN_BYTES = (b"a", b"b", b"(", b")", b"")
EOS_BIAS = 1.5
ROOT = 0x70F
"""Key of the empty context."""

_U_DV = torch.tensor([[((mix(d * VOCAB + v) >> 11) / 2**52 - 1) * 1.4 for v in range(VOCAB)] for d in range(WIDTH)])


@functools.lru_cache(maxsize=1 << 16)
def _hidden(key: int) -> tuple[float, ...]:
    return tuple(((mix(key ^ mix(d)) >> 11) / 2**52 - 1) * 1.7 for d in range(WIDTH))


def _logits(hidden_MD: Tensor) -> Tensor:
    logits_MV = (hidden_MD[:, :, None] * _U_DV[None]).sum(1)  # elementwise: a row's bits do not depend on M
    logits_MV[:, EOS] -= EOS_BIAS
    return logits_MV


def logits(context: Sequence[int]) -> Tensor:
    """float32 [V]: the model's logits after `context`. The independent reference of every law."""
    return _logits(torch.tensor([_hidden(derive(ROOT, *context))]))[0]


class ToyLane:
    """The table behind a slot cache: each slot holds one key per position."""

    branching = True
    eos: frozenset[int] = frozenset({EOS})
    token_bytes: Sequence[bytes] = TOKEN_BYTES
    sites: frozenset[str] = frozenset({"hidden"})

    def __init__(self, slots: int, context: int) -> None:
        self.slots, self.context = slots, context
        self._keys: list[list[int]] = [[] for _ in range(slots)]

    def encode(self, prompt: Prompt) -> list[int]:
        """Any text: `a b ( )` as themselves, other bytes by their value modulo 4."""
        match prompt:
            case Ids(ids):
                return list(ids)
            case Text(text):
                return [TOKEN_BYTES.index(bytes([b])) if b in b"ab()" else b % 4 for b in text.encode()]
            case Messages(messages):
                return self.encode(Text("".join(str(m.get("content", "")) for m in messages)))

    def forward(self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = ()) -> Outputs:
        keys: list[int] = []
        wanted: list[int] = []
        for chunk in chunks:
            slot = self._keys[chunk.slot]
            assert len(slot) >= chunk.start, "a chunk continues its cache"
            del slot[chunk.start :]
            for token in chunk.prefix:
                slot.append(derive(slot[-1] if slot else ROOT, token))
                keys.append(slot[-1])
            if chunk.tree:
                base = len(slot)
                for token, parent in zip(chunk.tree.token, chunk.tree.parent, strict=True):
                    above = slot[base + parent] if base + parent >= 0 else ROOT
                    slot.append(derive(above, token))
                    wanted.append(len(keys))
                    keys.append(slot[-1])
        hidden_MD = torch.tensor([_hidden(key) for key in keys])
        for hook in hooks:
            index = torch.tensor(hook.nodes)
            hidden_MD = hidden_MD.index_copy(0, index, hook.apply(hidden_MD[index]))
        hidden_MD = hidden_MD[wanted]
        return Outputs(_logits(hidden_MD), {"hidden": hidden_MD})

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        keys = self._keys[slot]
        keys[length:] = [keys[length + node] for node in path]

    def fork(self, source: int, target: int, length: int) -> None:
        self._keys[target] = self._keys[source][:length]

    def release(self, slot: int) -> None:
        self._keys[slot] = []


class ToyEngine(Loop):
    """The toy lane as an engine.

    step_s: seconds a step takes at least, to rehearse schedules
    poison: a prompt with this text kills the process while it holds a slot, to rehearse engine deaths
    """

    name = "toy"
    promise = "bitwise"

    def __init__(
        self, *, slots: int = 32, context: int = 4096, step_s: float = 0.0, poison: str | None = None, **loop: Any
    ) -> None:
        super().__init__(ToyLane(slots, context), **loop)
        self._step_s, self._poison, self._poisoned = step_s, poison, set[str]()

    def submit(self, request: Request) -> None:
        if self._poison and self._poison in _plain(request.prompt):
            self._poisoned.add(request.id)
        super().submit(request)

    def step(self) -> list[Any]:
        if self._step_s:
            time.sleep(self._step_s)
        events = super().step()
        held = {row.request for row in self.running} | {e.row.request for e in events if isinstance(e, OutcomeEvent)}
        if self._poisoned & held:
            time.sleep(0.05)  # a dying engine still lets what it said leave the process
            os.kill(os.getpid(), signal.SIGKILL)
        return events


def _plain(prompt: Prompt) -> str:
    match prompt:
        case Text(text):
            return text
        case Messages(messages):
            return "".join(str(dict(m) if isinstance(m, Mapping) else m) for m in messages)
        case _:
            return ""
