"""Which promise this device can keep, found by trying.

"bitwise":         a row's logits are the same bits alone, in a batch, in prompt chunks and under drafts
"near-ties only":  they differ by `noise`; texts then differ only where two tokens are nearly as likely

`check_lane` asks the loaded model and is what the engine reports; `probe` asks the matrix products alone, without a
model, for `doctor`. Both compare bits, neither measures time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch.cache import PAGE
from raydecode.engine.torch.family import refusal
from raydecode.engine.torch.layout import TILE
from raydecode.engine.torch.linear import PackedLinear
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


LAYERS = 6
"""How many layers the check runs: all kinds of a family's layers, a fifth of the cost of SmolLM2-135M's thirty."""

LENGTH = 2 * PAGE + 2
"""Tokens of the checked row: three pages, the last tokens on both sides of a boundary; its mate has one page more."""


def check_lane(lane: TorchLane, dtype: str) -> Promise:
    """Feed one sequence in several ways and compare the logits of its last CHAIN tokens. Slots are free afterwards.

    Raises Refused where the ways disagree by more than rounding: then the model mixes rows or forgets its cache.
    """
    size = len(lane.token_bytes)
    length = min(LENGTH, lane.context - 2)
    ids = [(7919 * i + 13) % size for i in range(length)]
    mate = [(104729 * i + 5) % size for i in range(min(length + PAGE, lane.context - 2))]
    with _first_layers(lane, LAYERS):
        alone = _logits(lane, ids, [length])
        found = {
            "prompt in chunks": _logits(lane, ids, [min(5, length), length // 2, length]),
            "token by token": _logits(lane, ids, [*range(max(length - CHAIN + 1, 1), length), length]),
        }
        found["on a path of a tree"] = _branching(lane, ids, [(7 * id + 1) % size for id in ids])
        if lane.slots > 1:
            found["beside a longer row"] = _logits(
                lane, ids, [*range(max(length - CHAIN + 1, 1), length), length], mate
            )
    noise = {way: float((logits - alone).abs().max()) for way, logits in found.items()}
    worst = max(noise, key=lambda way: noise[way])
    if all(torch.equal(logits, alone) for logits in found.values()):
        return Promise("bitwise", "cpu", dtype, 0.0, f"equal bits: {', '.join(found)}")
    if not noise[worst] < 0.5 * float(alone.std()):
        raise refusal(type(lane.model).__name__, f"gives other logits ({noise[worst]:.2g}) under: {worst}")
    return Promise("near-ties only", "cpu", dtype, noise[worst], f"logits differ by {noise[worst]:.2g} under: {worst}")


CHAIN = 4


def _logits(lane: TorchLane, ids: list[int], ends: list[int], mate: list[int] | None = None) -> Tensor:
    """Logits at the last CHAIN tokens of `ids`, fed in pieces that end at `ends`, each beside one token of the mate."""
    slot, start, seen, out = (1 if mate else 0), 0, len(mate or ()) - len(ends), []
    if mate:
        lane.forward([Chunk(0, 0, tuple(mate[:seen]), None)], Needs())
    for turn, end in enumerate(ends):
        wanted = max(start, min(end, len(ids) - CHAIN))  # nodes from here on give logits
        tree = TokenTree.chain(ids[wanted:end]) if end > wanted else None
        chunks = [Chunk(slot, start, tuple(ids[start:wanted]), tree)]
        if mate:
            chunks.insert(0, Chunk(0, seen + turn, (mate[seen + turn],), None))
        logits_MV = lane.forward(chunks, Needs()).logits_MV
        if tree:
            out.append(logits_MV.clone())
        start = end
    for used in range(slot + 1):
        lane.release(used)
    return torch.cat(out)


def _branching(lane: TorchLane, ids: list[int], others: list[int]) -> Tensor:
    """The same logits from a tree whose other paths come first, so that the true path lies in scattered columns."""
    start = max(len(ids) - CHAIN, 0)
    root, *path = ids[start:]
    decoys = [(*path[:depth], *others[start + 1 + depth :]) for depth in range(len(path))]
    tree = TokenTree.paths(root, [*decoys, path])
    node, nodes = 0, [0]
    for token in path:
        child = tree.child(node, token)
        assert child is not None
        node = child
        nodes.append(node)
    logits_MV = lane.forward([Chunk(0, 0, tuple(ids[:start]), tree)], Needs()).logits_MV[nodes]
    lane.release(0)
    return logits_MV


@contextlib.contextmanager
def _first_layers(lane: TorchLane, count: int) -> Iterator[None]:
    """Families that loop over layers[:config.num_hidden_layers] run `count` of them; others run all."""
    config = lane.model.config.get_text_config()
    before = config.num_hidden_layers
    config.num_hidden_layers = min(before, count)
    try:
        yield
    finally:
        config.num_hidden_layers = before


def probe(dtype: str) -> Promise:
    """The same question put to random products of the engine's shapes; no model needed, under a second."""
    from raydecode.models.weights import resolve_dtype

    kind = resolve_dtype(dtype) or torch.float32
    make = torch.Generator().manual_seed(0)
    x, weight, keys, query = (
        torch.randn(*shape, generator=make).to(kind)
        for shape in ((64, 576), (1536, 576), (2, 3, 256, 64), (2, 3, 32, 64))
    )
    layer, first, packed = (
        (lambda y: torch.nn.functional.linear(y, weight)),
        TILE if kind == torch.float32 else 2,
        False,
    )
    with contextlib.suppress(RuntimeError):  # this dtype cannot be packed here
        if kind == torch.float32:
            layer, first, packed = PackedLinear(weight, None), 1, True
    with torch.inference_mode():
        scores = torch.matmul(query, keys.transpose(-1, -2))
        sums = torch.matmul(scores[..., :PAGE].softmax(-1), keys[:, :, :PAGE])
        whole = layer(x)
        differ = {f"dense layer of {n} rows": (layer(x[:n]), whole[:n]) for n in (first, TILE, 24)}
        for n in range(TILE, 32, TILE):
            part = torch.matmul(query[:1, :, :n], keys[:1].transpose(-1, -2))
            differ[f"scores of {n} rows"] = part, scores[:1, :, :n]
            part = torch.matmul(scores[:1, :, :n, :PAGE].softmax(-1), keys[:1, :, :PAGE])
            differ[f"weighted sum of {n} rows"] = part, sums[:1, :, :n]
        noise = {what: float((a - b).abs().max()) for what, (a, b) in differ.items() if not torch.equal(a, b)}
    how = "packed" if packed else "padded"
    if not noise:
        return Promise("bitwise", "cpu", dtype, 0.0, f"products of {first} to 64 rows give equal bits ({how} layers)")
    return Promise("near-ties only", "cpu", dtype, max(noise.values()), f"differ: {', '.join(list(noise)[:3])}")
