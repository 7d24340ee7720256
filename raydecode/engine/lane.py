"""A lane: one model and its cache, as the loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from raydecode.contracts import Needs, Slope
from raydecode.request import Prompt
from raydecode.tree import TokenTree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one slot, continuing the `start` tokens in its cache.

    prefix: committed tokens, a chain, no logits wanted
    tree:   hangs below the last prefix token, logits wanted at every node; None while a prompt is still being fed,
            and a part of it, a chain, where a drafter is told of it (`Needs.prompt`)
    """

    slot: int
    start: int
    prefix: tuple[int, ...]
    tree: TokenTree | None

    def __len__(self) -> int:
        return len(self.prefix) + (len(self.tree) if self.tree else 0)


@dataclass(frozen=True, slots=True)
class Hook:
    """An intervention at a site for some of the call's nodes (index over all chunks, prefix nodes included).

    Hooks of one site act in order, before the site is read. apply: [len(nodes), D] -> the same shape and dtype.
    """

    site: str
    nodes: tuple[int, ...]
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Outputs:
    """logits_MV: float32, M = tree nodes of all chunks in order. hidden: site -> [M, D], the sites that were asked for;
    for what is `readable` a sequence of M tensors.

    head: [N, D] of any site -> float32 [N, V], the output layer, alone or behind the final norm; row by row
    """

    logits_MV: Tensor
    hidden: Mapping[str, Any] = field(default_factory=dict)
    head: Callable[[Tensor, bool], Tensor] | None = None


class Lane(Protocol):
    """Slots 0..slots-1, each with its own cache length, over pages of `page` tokens (`engine.pages` has the rules).

    There are pages for at least one row of `context` tokens, so that a row which fits the context fits alone.
    Behind the slots of rows stands a mirror of each, `slots + slot`: an empty table during steps, where the loop forks
    what a draft reads apart from the row itself; it is released before the call ends.
    sites: where hooks act and hidden states are read, from the inside out:
           "input" (what the token table gives), "embedding" (the first layer's input), "layer.0" .. (each layer's
           output), "final" (the output layer's input)
    blocks: parts that a call may leave out, from the inside out: "attention.i", "mlp.i"
    A lane may also say
    readable: further names that `needs.hidden` may hold: "attention.0" .., the weights of a layer's heads, [H, S] over
           the S tokens of a node's path; a node's are made when they are looked at, and before the lane's next call
    differentiable: whether there is `slope`
    alike: lanes of a process with equal answers take equally long for equal calls; None or nothing: ask each
    contend: a faster form of `randomness.contenders`
    Law: a node's logits depend on the tokens on its path only; bit for bit where the engine's `promise` says so.
    """

    slots: int
    context: int
    page: int
    eos: frozenset[int]
    token_bytes: Sequence[bytes]
    sites: Sequence[str]
    blocks: Sequence[str]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; raises RowError."""
        ...

    def reserve(self, slot: int, start: int, length: int) -> bool:
        """Make room for columns start..length of a slot; False and no change where there is none."""
        ...

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        """Share what other slots published of `ids` from column `start` on; columns held then.

        salt: what else the cache depends on (interventions); rows share under equal salts only.
        """
        ...

    def publish(self, slot: int, ids: Sequence[int]) -> None:
        """The slot's first columns hold `ids` for good: others may share their whole pages."""
        ...

    def forward(
        self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = (), skip: frozenset[str] = frozenset()
    ) -> Outputs:
        """One ragged call over reserved columns. A slot then holds start + len(chunk) tokens, until `keep` says which
        stay. skip: blocks whose output is taken as 0; the columns written then serve calls with the same skip alone."""
        ...

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        """Keep `length` tokens and then the tree nodes of `path` (offsets behind `length`); drop the rest."""
        ...

    def fork(self, source: int, target: int, length: int) -> None:
        """Let `target` start with the first `length` tokens of `source`."""
        ...

    def release(self, slot: int) -> None:
        """Forget a slot's cache."""
        ...

    def check(self, held: Sequence[int]) -> None:
        """Assert, for tests, that the slots not `held` have no pages and that no page leaked."""
        ...


class SlopeLane(Lane, Protocol):
    """A lane that is `differentiable`."""

    def slope(
        self, ids: Sequence[int], site: str, loss: Callable[[Tensor], Tensor], hooks: Sequence[Hook],
        shift_D: Tensor | None,
    ) -> Slope:  # fmt: skip
        """See `contracts.SamplerRows.slope`. hooks: over the path's nodes. Reads and writes no slot."""
        ...


class SourceLane(Lane, Protocol):
    """An encoder-decoder: the prompt is what the encoder reads, and rows begin with `starts`, decoder ids."""

    starts: tuple[int, ...]

    def read(self, slot: int, source: Sequence[int]) -> None:
        """Encode a source into a slot, once; forks share it."""
        ...
