"""Any transformers decoder-only model as a lane: one flat, ragged call per step.

All new tokens of all rows go through the model as one sequence [1, M]; only attention knows about rows, and that is ours
(`attention`). M is padded to a multiple of TILE, which makes every matrix product's rows independent of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raydecode import models
from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.torch import attention
from raydecode.engine.torch.attention import TILE, Layout, Run
from raydecode.engine.torch.cache import Cache
from raydecode.errors import Refused, RowError
from raydecode.request import Ids, Messages, Prompt, Text
from raydecode.tree import TokenTree


class TorchLane:
    """A model folder on one device. slots, context: see `Cache`; dtype: a torch dtype's name."""

    sites: frozenset[str] = frozenset()

    def __init__(self, folder: Path, *, dtype: str, slots: int, context: int, trust_remote_code: bool = False) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.attend)
        self.vocabulary = models.Vocabulary.of(folder, trust_remote_code=trust_remote_code)
        self.model = models.load_module(folder, dtype, trust_remote_code=trust_remote_code).eval()
        if not getattr(self.model, "_supports_attention_backend", False) or self.model.config.is_encoder_decoder:
            raise Refused(
                f"{type(self.model).__name__} computes attention in a way of its own", field="model", value=str(folder),
                hint="families on transformers' attention interface work: Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX, Phi",
            )  # fmt: skip
        self.model.set_attn_implementation(attention.NAME)
        self.slots, self.context = slots, context
        self.cache = Cache(slots, context)
        self.eos = self.vocabulary.eos_ids
        self.token_bytes = self.vocabulary.token_bytes

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
    def forward(self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = ()) -> Outputs:
        assert not hooks, "a lane without sites gets no hooks"
        ids: list[int] = []
        runs: list[Run] = []
        wanted: list[int] = []
        for chunk in chunks:
            tree = chunk.tree or TokenTree((), (), ())
            assert tree.parent == tuple(range(-1, len(tree) - 1)), "this lane verifies chains"
            runs.append(Run(chunk.slot, chunk.start, len(ids), len(chunk)))
            ids += chunk.prefix
            wanted += range(len(ids), len(ids) + len(tree))
            ids += tree.token
            self.cache.note(chunk.slot, chunk.start + len(chunk))
        self.cache.reserve(max(run.start + run.length for run in runs))
        layout = Layout(self.cache, runs)
        pad = -len(ids) % TILE
        keep = wanted + [0] * (-len(wanted) % TILE or TILE * (not wanted))
        token = attention.current.set(layout)
        try:
            out = self.model(
                input_ids=torch.tensor([ids + [0] * pad]),
                position_ids=torch.nn.functional.pad(layout.column_M, (0, pad))[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=torch.tensor(keep),
            )
        finally:
            attention.current.reset(token)
        logits_MV: Tensor = out.logits[0, : len(wanted)].float()
        return Outputs(logits_MV[:, : len(self.token_bytes)])

    @torch.inference_mode()
    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        self.cache.keep(slot, length, path)

    @torch.inference_mode()
    def fork(self, source: int, target: int, length: int) -> None:
        self.cache.fork(source, target, length)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        self.cache.release(slot)
