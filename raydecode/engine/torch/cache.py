"""Keys and values of every slot, in pages of PAGE tokens; `engine.pages` says whose they are.

K, V per layer: [pages, kv_heads, PAGE, head_dim]. Pages get memory when they are first used (an untouched allocation
costs address space only), so a short job never pays for a long context; nothing is copied per token.

Law: values are finite. A value that is not is stored as 0 and turns its key into NaN: whoever attends to the column
gets NaN, whoever does not cannot be reached through 0 * NaN, so neither freed pages nor dropped drafts need wiping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raydecode.engine.pages import Pages

PAGE = 64
"""Tokens per page. 128 was no faster (32 rows of 256 keys) and wastes twice as much behind each row's last token."""


class Cache:
    """slots: rows at once; tokens: how many fit, at least one row of `context`; retain: tokens kept after their rows.

    Layers appear on first use with their own shapes.
    """

    def __init__(self, slots: int, context: int, tokens: int | None = None, retain: int = 0) -> None:
        whole = -(-context // PAGE)
        count = slots * whole if tokens is None else max(tokens // PAGE, whole)
        self.pages = Pages(2 * slots, count, PAGE, min(retain // PAGE, count))
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._clean = 0
        self._moves: list[tuple[int, int, int, int]] = []

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(K, V) of a layer."""
        return self._layers[index]

    def reserve(self, slot: int, start: int, length: int) -> bool:
        """Let `slot` write columns start..length; False: there is no room, and nothing happened."""
        copies = self.pages.reserve(slot, start, length)
        if copies:
            self.flush()
            source, target = map(list, zip(*copies, strict=True))
            for tensor in self._tensors():
                tensor[target] = tensor[source]
        return copies is not None

    def open(self, index: int, heads: int, size: int, value_size: int, like: Tensor) -> None:
        """Give a layer its memory, once. like: its dtype and device."""
        if index not in self._layers:
            keys, values = (like.new_empty(self.pages.count, heads, PAGE, one) for one in (size, value_size))
            values[: self._clean].zero_()
            self._layers[index] = keys, values

    def write(self, index: int, page_M: Tensor, offset_M: Tensor, key_MKD: Tensor, value_MKD: Tensor) -> None:
        """Store new tokens' keys and values."""
        self.open(index, key_MKD.shape[1], key_MKD.shape[2], value_MKD.shape[2], key_MKD)
        keys, values = self._layers[index]
        host = value_MKD.device.type == "cpu"  # elsewhere a look at the sum would wait for the device, layer by layer
        if not (host and math.isfinite(value_MKD.sum(dtype=torch.float32))):
            key_MKD = key_MKD + (value_MKD * 0).sum(-1, keepdim=True)  # 0, or NaN where a value is not finite
            value_MKD = value_MKD.nan_to_num(0.0, 0.0, 0.0)
        keys[page_M, :, offset_M] = key_MKD
        values[page_M, :, offset_M] = value_MKD

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        """Move the columns length + path[i] to length + i, for all slots at once before anything is read again."""
        table = self.pages.tables[slot]
        for i, node in enumerate(path):
            if node != i:
                (a, b), (c, d) = divmod(length + node, PAGE), divmod(length + i, PAGE)
                self._moves.append((table[a], b, table[c], d))

    def flush(self) -> None:
        """Do what `keep` and `reserve` left undone: moves, and zeros in pages that were never used."""
        if self._clean < self.pages.touched:
            for _, values in self._layers.values():
                values[self._clean : self.pages.touched].zero_()
            self._clean = self.pages.touched
        if self._moves:
            a, b, c, d = map(list, zip(*self._moves, strict=True))
            for tensor in self._tensors():
                tensor[c, :, d] = tensor[a, :, b]
            self._moves.clear()

    @property
    def bytes(self) -> int:
        """Memory of the pages that were ever in use."""
        per_page = sum(t[0].numel() * t.element_size() for t in self._tensors())
        return per_page * self.pages.touched

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self._layers.values() for tensor in pair]
