"""Keys and values of every slot: contiguous, one length per slot, grown for all slots together.

K, V per layer: [slots, kv_heads, S, head_dim], S a multiple of BLOCK that doubles on demand, so that appending never
copies a row and a short job never pays for a long context. Freed slots are zeroed: a NaN left by one row would
otherwise reach the next through 0 * NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 64


class Cache:
    """slots: rows at once; context: most tokens per slot. Layers appear on first use with their own shapes."""

    def __init__(self, slots: int, context: int) -> None:
        self.slots, self.context = slots, context
        self._size = min(4 * BLOCK, rounded(context))
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._used = [0] * slots

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(K, V) of a layer."""
        return self._layers[index]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every slot."""
        if length <= self._size:
            return
        size = min(max(2 * self._size, rounded(length)), rounded(self.context))
        for index, pair in self._layers.items():
            grown = []
            for old in pair:
                new = old.new_zeros(old.shape[0], old.shape[1], size, old.shape[3])
                new[:, :, : self._size] = old
                grown.append(new)
            self._layers[index] = grown[0], grown[1]
        self._size = size

    def write(self, index: int, slot_M: Tensor, column_M: Tensor, key_MKD: Tensor, value_MKD: Tensor) -> None:
        """Store new tokens' keys and values at (slot, column)."""
        if index not in self._layers:
            shape = self.slots, key_MKD.shape[1], self._size
            keys = key_MKD.new_zeros(*shape, key_MKD.shape[2])
            self._layers[index] = keys, value_MKD.new_zeros(*shape, value_MKD.shape[2])
        keys, values = self._layers[index]
        keys[slot_M, :, column_M] = key_MKD
        values[slot_M, :, column_M] = value_MKD

    def note(self, slot: int, length: int) -> None:
        """`length` columns of `slot` hold something."""
        self._used[slot] = max(self._used[slot], length)

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        """Move the columns length + path[i] to length + i; zero those behind: a dropped draft may have left a NaN."""
        end = length + len(path)
        moved = list(path) != list(range(len(path)))
        if not moved and self._used[slot] <= end:
            return
        source = torch.tensor([length + node for node in path], dtype=torch.int64)
        for keys, values in self._layers.values():
            for tensor in (keys, values):
                if moved:
                    tensor[slot, :, length:end] = tensor[slot][:, source]
                tensor[slot, :, end : self._used[slot]] = 0
        self._used[slot] = end

    def fork(self, source: int, target: int, length: int) -> None:
        for keys, values in self._layers.values():
            for tensor in (keys, values):
                tensor[target, :, :length] = tensor[source, :, :length]
        self.note(target, length)

    def release(self, slot: int) -> None:
        for keys, values in self._layers.values():
            keys[slot, :, : self._used[slot]] = 0
            values[slot, :, : self._used[slot]] = 0
        self._used[slot] = 0

    @property
    def bytes(self) -> int:
        """Memory held now."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)


def rounded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
