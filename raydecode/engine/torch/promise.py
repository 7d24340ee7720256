"""Which promise this device can keep, found by trying.

"bitwise":         a row's logits are the same bits alone, in a batch, in prompt chunks and under drafts
"near-ties only":  they differ by `noise`; texts then differ only where two tokens are nearly as likely

`check_lane` asks the loaded model and is what the engine reports; `probe` asks the matrix products alone, without a
model, for `doctor`. Both compare bits, neither measures time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch.attention import PIECE, TILE
from raydecode.tree import TokenTree

if TYPE_CHECKING:
    from raydecode.engine.torch.lane import TorchLane


@dataclass(frozen=True, slots=True)
class Promise:
    """noise: the largest difference seen between logits that should be equal (0 if bitwise)."""

    promise: Literal["bitwise", "near-ties only"]
    device: str
    dtype: str
    noise: float
    detail: str


def check_lane(lane: TorchLane, dtype: str) -> Promise:
    """Feed one sequence in several ways and compare the last logits. Uses the first slots; leaves them free."""
    size = len(lane.token_bytes)
    length = min(40, lane.context - 4)
    ids = [(7919 * i + 13) % size for i in range(length + 2)]
    mate = [(104729 * i + 5) % size for i in range(min(3 * length, lane.context - 2))]
    alone = _plain(lane, ids, [len(ids)])
    found = {"chunked prompt": _plain(lane, ids, [5, 18, len(ids)]), "token by token": _plain(lane, ids, [length, length + 1, len(ids)])}
    if lane.slots > 1:
        found["batch of two"] = _plain(lane, ids, [length, len(ids)], mate)
    noise = {way: float((logits - alone).abs().max()) for way, logits in found.items()}
    worst = max(noise, key=lambda way: noise[way])
    if all(torch.equal(logits, alone) for logits in found.values()):
        return Promise("bitwise", "cpu", dtype, 0.0, f"equal bits: {', '.join(found)}")
    return Promise("near-ties only", "cpu", dtype, noise[worst], f"logits differ by {noise[worst]:.2g} under: {worst}")


def _plain(lane: TorchLane, ids: list[int], ends: list[int], mate: list[int] | None = None) -> Tensor:
    """Logits after `ids`, fed in pieces that end at `ends`; the last piece is verified as a chain, beside a mate."""
    slot = 1 if mate else 0
    if mate:
        lane.forward([Chunk(0, 0, tuple(mate[:-1]), None)], Needs())
    start = 0
    for end in ends[:-1]:
        lane.forward([Chunk(slot, start, tuple(ids[start:end]), None)], Needs())
        start = end
    chunks = [Chunk(slot, start, (), TokenTree.chain(ids[start:]))]
    if mate:
        chunks.insert(0, Chunk(0, len(mate) - 1, (), TokenTree.root(mate[-1])))
    last = lane.forward(chunks, Needs()).logits_MV[-1].clone()
    for used in range(slot + 1):
        lane.release(used)
    return last


def probe(dtype: str, threads: int | None = None) -> Promise:
    """The same question put to random products of the engine's shapes; no model needed, about a second."""
    from raydecode.models.weights import resolve_dtype

    kind = resolve_dtype(dtype) or torch.float32
    make = torch.Generator().manual_seed(0)
    weight = torch.randn(1536, 576, generator=make).to(kind)
    x = torch.randn(64, 576, generator=make).to(kind)
    whole = torch.nn.functional.linear(x, weight)
    differ = [
        f"linear of {rows} rows"
        for rows in range(TILE, 64, TILE)
        if not torch.equal(torch.nn.functional.linear(x[:rows], weight), whole[:rows])
    ]
    noise = 0.0
    keys = torch.randn(2, 3, 4 * PIECE, 64, generator=make).to(kind)
    query = torch.randn(2, 3, 4 * TILE, 64, generator=make).to(kind)
    scores = torch.matmul(query, keys.transpose(-1, -2))
    values = torch.matmul(scores[..., :PIECE].softmax(-1), keys[:, :, :PIECE])
    for rows in range(TILE, 4 * TILE, TILE):
        part = torch.matmul(query[:1, :, :rows], keys[:1].transpose(-1, -2))
        if not torch.equal(part, scores[:1, :, :rows]):
            differ.append(f"scores of {rows} rows")
            noise = max(noise, float((part - scores[:1, :, :rows]).abs().max()))
        again = torch.matmul(scores[:1, :, :rows, :PIECE].softmax(-1), keys[:1, :, :PIECE])
        if not torch.equal(again, values[:1, :, :rows]):
            differ.append(f"weighted sum of {rows} rows")
    if not differ:
        return Promise("bitwise", "cpu", dtype, 0.0, "products of 8 to 64 rows give equal bits")
    return Promise("near-ties only", "cpu", dtype, noise, f"differ: {', '.join(differ[:3])}")
