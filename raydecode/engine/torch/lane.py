"""Any transformers decoder-only model as a lane: one flat, ragged call per step.

All new tokens of all rows go through the model as one sequence [1, M]; only attention knows about rows, and that is
ours (`attention`). Dense layers are packed or M is padded, so a product's rows do not depend on the batch (`linear`).
With `compiled` all this is done by kernels of our own (`native`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydecode import models
from raydecode.contracts import Needs, Slope
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.torch import attention
from raydecode.engine.torch.cache import PAGE, Cache
from raydecode.engine.torch.family import check_class
from raydecode.engine.torch.fused import fuse
from raydecode.engine.torch.layout import Layout, Run
from raydecode.engine.torch.linear import Weights, pack, padding
from raydecode.engine.torch.native import contend
from raydecode.engine.torch.paths import Paths
from raydecode.engine.torch.sites import Sites
from raydecode.engine.torch.slope import slope
from raydecode.engine.torch.weights import PREFIX, Watch
from raydecode.errors import RowError
from raydecode.request import Ids, Messages, Prompt, Text

if TYPE_CHECKING:
    from raydecode.randomness import Contend


class TorchLane:
    """A model folder on one device; logits stay there. slots, context, tokens, retain: see `Cache`; dtype: by name.

    fused: layers that are one call each
    """

    page = PAGE

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        slots: int,
        context: int,
        tokens: int | None = None,
        retain: int = 0,
        weights: Weights = "full",
        compiled: bool = False,
        trust_remote_code: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.attend)
        self.vocabulary = models.Vocabulary.of(folder, trust_remote_code=trust_remote_code)
        self.model = models.load_module(folder, dtype, device=device, trust_remote_code=trust_remote_code).eval()
        self.model.requires_grad_(False)  # gradients are of hidden states (`slope`), never of weights
        check_class(type(self.model), self.model.config)
        self.model.set_attn_implementation(attention.NAME)
        self.dtype, self.compiled = self.model.dtype, compiled
        self._kind = str(folder), dtype, weights, compiled, str(device)
        self.packed = pack(self.model, weights, compiled=compiled) == 0
        self.fused = fuse(self.model) if compiled else 0
        self.contend: Contend | None = contend if compiled else None
        self.inside = Sites(self.model)
        self.sites: Sequence[str] = self.inside.names
        layers = range(0 if compiled else len(self.sites) - 3)  # a layer in one call has no attention to look at
        self.readable: Sequence[str] = tuple(f"{PREFIX}{i}" for i in layers)
        self.differentiable = weights == "full" and not compiled and bool(self.sites)
        self.blocks: Sequence[str] = self.inside.blocks
        self.slots, self.context = slots, context
        self.cache = Cache(slots, context, tokens, retain)
        self.eos = self.vocabulary.eos_ids
        self.token_bytes = self.vocabulary.token_bytes

    @property
    def alike(self) -> Hashable:
        """See `Lane`."""
        return (*self._kind, torch.get_num_threads())

    def encode(self, prompt: Prompt) -> list[int]:
        match prompt:
            case Ids(ids):
                size = self.model.config.get_text_config().vocab_size
                bad = [i for i in ids if not 0 <= i < size]
                if bad:
                    raise RowError("request", "BadToken", f"token {bad[0]} is outside the vocabulary of {size}")
                return list(ids)
            case Text(text):
                return self.vocabulary.encode(text)
            case Messages(messages):
                return self.vocabulary.render_chat([dict(m) for m in messages])

    @torch.inference_mode()
    def forward(
        self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = (), skip: frozenset[str] = frozenset()
    ) -> Outputs:
        ids: list[int] = []
        runs: list[Run] = []
        wanted: list[int] = []
        for chunk in chunks:
            fits = self.cache.reserve(chunk.slot, chunk.start, chunk.start + len(chunk))
            assert fits, "the loop makes room first"
            runs.append(Run(chunk.slot, chunk.start, len(ids), len(chunk.prefix), chunk.tree))
            ids += chunk.prefix
            if chunk.tree:
                wanted += range(len(ids), len(ids) + len(chunk.tree))
                ids += chunk.tree.token
        self.cache.flush()
        device = self.model.device
        layout = Paths(self.cache, runs) if self.compiled else Layout(self.cache, runs, device)
        pad = self._padding(len(ids))
        keep = wanted + [0] * (self._padding(len(wanted)) + (not wanted))
        watch = Watch([site for site in needs.hidden if site in self.readable], chunks, wanted, self.cache)
        token, watched = attention.current.set(layout), attention.watching.set(watch if watch.weights else None)
        try:
            with self.inside.without(skip), self.inside.open(needs.hidden, hooks, wanted) as hidden:
                out = self.model(
                    input_ids=torch.tensor([ids + [0] * pad], device=device),
                    position_ids=torch.nn.functional.pad(layout.position_M, (0, pad))[None],
                    attention_mask=None,
                    use_cache=False,
                    logits_to_keep=torch.tensor(keep, device=device),
                )
        finally:
            attention.current.reset(token)
            attention.watching.reset(watched)
        logits_MV = out.logits[0, : len(wanted), : len(self.token_bytes)].float()
        return Outputs(logits_MV, {**hidden, **watch.weights}, self.head)

    def slope(
        self, ids: Sequence[int], site: str, loss: Callable[[Tensor], Tensor], hooks: Sequence[Hook] = (),
        shift_D: Tensor | None = None,
    ) -> Slope:  # fmt: skip
        """One path run again, differentiably; see `engine.torch.slope`."""
        return slope(self.inside, ids, len(self.token_bytes), site, loss, hooks, shift_D)

    @torch.inference_mode()
    def head(self, hidden_ND: Tensor, norm: bool) -> Tensor:
        """float32 [N, V]; see `Outputs.head`."""
        pad = self._padding(len(hidden_ND))
        padded = torch.nn.functional.pad(hidden_ND, (0, 0, 0, pad))
        return self.inside.head(padded, norm)[: len(hidden_ND), : len(self.token_bytes)]

    def _padding(self, rows: int) -> int:
        return 0 if self.compiled else padding(rows, self.dtype, self.packed)

    @torch.inference_mode()
    def reserve(self, slot: int, start: int, length: int) -> bool:
        return self.cache.reserve(slot, start, length)

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        return self.cache.pages.adopt(slot, start, ids, salt)

    def publish(self, slot: int, ids: Sequence[int]) -> None:
        self.cache.pages.publish(slot, ids)

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        self.cache.keep(slot, length, path)

    def fork(self, source: int, target: int, length: int) -> None:
        self.cache.pages.fork(source, target, length)

    def release(self, slot: int) -> None:
        self.cache.pages.release(slot)

    def check(self, held: Sequence[int]) -> None:
        self.cache.pages.check(held)
