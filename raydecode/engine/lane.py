"""A lane: one model and its cache, as the loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from raydecode.contracts import Needs
from raydecode.request import Prompt
from raydecode.tree import TokenTree

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one slot, continuing the `start` tokens in its cache.

    prefix: committed tokens, a chain, no logits wanted
    tree:   hangs below the last prefix token, logits wanted at every node; None while a prompt is still being fed
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
    """logits_MV: float32, M = tree nodes of all chunks in order. hidden: site -> [M, D], the sites that were asked for.

    head: [N, D] of any site -> float32 [N, V], the output layer, alone or behind the final norm; row by row
    """

    logits_MV: Tensor
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    head: Callable[[Tensor, bool], Tensor] | None = None


class Lane(Protocol):
    """Slots 0..slots-1, each with its own cache length.

    branching: takes trees whose nodes have several children; False: chains only
    sites: where hooks act and hidden states are read, from the inside out:
           "input" (what the token table gives), "embedding" (the first layer's input), "layer.0" .. (each layer's
           output), "final" (the output layer's input)
    Law: a node's logits depend on the tokens on its path only; bit for bit where the engine's `promise` says so.
    """

    slots: int
    context: int
    branching: bool
    eos: frozenset[int]
    token_bytes: Sequence[bytes]
    sites: Sequence[str]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; raises RowError."""
        ...

    def forward(self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = ()) -> Outputs:
        """One ragged call. The cache of each slot then holds start + len(chunk) tokens until `keep` says which stay."""
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
