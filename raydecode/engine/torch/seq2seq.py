"""Encoder-decoders as a lane: the source is encoded once per request, then the decoder's rows go through one flat call.

A row's context is the decoder's (its start token, then the output); the prompt is the source and belongs to the slot:
`read` encodes it alone, so that its bits depend on nobody, and keeps each layer's cross keys and values in pages of
their own, which samples of one request share. The decoder's keys lie in pages as in the other lane, and the same ragged
products serve both: trees, forks, forced memory and a NaN behave as there. T5's relative position bias is computed
from absolute columns, since the model, fed one flat sequence, cannot know them; BART's and Marian's positions are
handed to their position tables for the same reason.

Legend: M nodes of the call, N those of one product, H heads, S columns, D head size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from raydecode import models
from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook, Outputs
from raydecode.engine.torch.attention import weigh
from raydecode.engine.torch.cache import PAGE, Cache
from raydecode.engine.torch.layout import Across, Layout, Run
from raydecode.engine.torch.linear import PackedLinear, pack, padding
from raydecode.engine.torch.sites import Sites
from raydecode.request import Ids, Messages, Prompt, Text

NAME = "raydecode_seq2seq"


class Seq2SeqLane:
    """A T5, BART or Marian folder. slots: rows at once; context: most tokens of a source, and of an output; tokens:
    of all outputs that fit the cache. Every slot has room for a source beside that."""

    page = PAGE
    blocks: Sequence[str] = ()

    def __init__(
        self, folder: Path, *, dtype: str, slots: int, context: int, tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        AttentionInterface.register(NAME, attend)
        self.vocabulary = models.Vocabulary.of(folder, trust_remote_code=trust_remote_code)
        self.model: Any = models.load_module(folder, dtype, trust_remote_code=trust_remote_code).eval()
        for part in self.model.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = NAME  # T5's two stacks have configurations of their own
        self.dtype, self.packed = self.model.dtype, pack(self.model, sharing=()) == 0
        for module in self.model.modules():
            if isinstance(module, PackedLinear):
                module.__dict__["weight"] = None  # T5 looks at a layer's dtype and takes None for "as it is"
        self.slots, self.context = slots, context
        self.eos, self.token_bytes = self.vocabulary.eos_ids, self.vocabulary.token_bytes
        config = self.model.generation_config
        starts = (config.decoder_start_token_id, config.forced_bos_token_id)
        self.starts: tuple[int, ...] = tuple(id for id in starts if id is not None)
        self.unread: tuple[int, ...] | None = None
        """A source for slots that were given none: only while the promise is checked."""
        decoder = self.model.get_decoder()
        ends = "encoder_attn", "EncDecAttention"
        cross = [part for name, part in decoder.named_modules() if name.endswith(ends)]
        self.cross = {part: i for i, part in enumerate(cross)}
        self.biased = next((p for p in decoder.modules() if getattr(p, "has_relative_attention_bias", False)), None)
        if hasattr(decoder, "embed_positions"):
            decoder.embed_positions.register_forward_pre_hook(_place, with_kwargs=True)
        self.inside = Sites(self.model)
        self.sites: Sequence[str] = self.inside.names
        self.forget(tokens)

    def forget(self, tokens: int | None = None) -> None:
        """Empty caches."""
        self.cache = Cache(self.slots, self.context, tokens)
        self.sources = Cache(self.slots, self.context)
        self.length: dict[int, int] = {}

    def encode(self, prompt: Prompt) -> list[int]:
        """The source, with what its tokenizer puts around it: an encoder wants the end token that `Text` prompts of
        decoders lose."""
        match prompt:
            case Ids(ids):
                return list(ids)
            case Text(text):
                self.vocabulary.encode(text)  # its errors
                return list(self.vocabulary.tokenizer.encode(text))
            case Messages(messages):
                return self.vocabulary.render_chat([dict(m) for m in messages])

    @torch.inference_mode()
    def reserve(self, slot: int, start: int, length: int) -> bool:
        return self.cache.reserve(slot, start, length)

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        """Nothing is shared between requests: the decoder's keys depend on the source."""
        return start

    def publish(self, slot: int, ids: Sequence[int]) -> None: ...

    def check(self, held: Sequence[int]) -> None:
        self.cache.pages.check(held)
        self.sources.pages.check(held)
        assert self.length.keys() <= set(held), (sorted(self.length), held)

    @torch.inference_mode()
    def read(self, slot: int, source: Sequence[int]) -> None:
        """Encode a source into a slot."""
        token = current.set(_Reading())
        try:
            states_1SD = self.model.get_encoder()(input_ids=torch.tensor([list(source)])).last_hidden_state
        finally:
            current.reset(token)
        flat_SD = pad(states_1SD[0], (0, 0, 0, padding(len(source), self.dtype, self.packed)))
        self.sources.pages.release(slot)
        fits = self.sources.reserve(slot, 0, len(source))
        assert fits, "there is room for a source per slot, and none is longer than the context"
        self.sources.flush()
        table = self.sources.pages.tables[slot]
        column_S = torch.arange(len(source))
        page_S, offset_S = torch.tensor(table)[column_S // PAGE], column_S % PAGE
        for module, index in self.cross.items():
            heads = getattr(module, "num_heads", None) or module.n_heads
            key_SHD, value_SHD = (
                layer(flat_SD)[: len(source)].unflatten(1, (heads, -1))
                for layer in (_first(module, "k_proj", "k"), _first(module, "v_proj", "v"))
            )
            self.sources.write(index, page_S, offset_S, key_SHD, value_SHD)
        self.length[slot] = len(source)

    @torch.inference_mode()
    def forward(
        self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = (), skip: frozenset[str] = frozenset()
    ) -> Outputs:
        ids: list[int] = []
        runs: list[Run] = []
        wanted: list[int] = []
        for chunk in chunks:
            if chunk.slot not in self.length and self.unread:
                self.read(chunk.slot, self.unread)
            fits = self.cache.reserve(chunk.slot, chunk.start, chunk.start + len(chunk))
            assert fits, "the loop makes room first"
            runs.append(Run(chunk.slot, chunk.start, len(ids), len(chunk.prefix), chunk.tree))
            ids += chunk.prefix
            if chunk.tree:
                wanted += range(len(ids), len(ids) + len(chunk.tree))
                ids += chunk.tree.token
        self.cache.flush()
        rows = padding(len(ids), self.dtype, self.packed)
        state = _Decoding(self, runs, rows)
        token = current.set(state)
        try:
            with self.inside.open(needs.hidden, hooks, wanted) as hidden:
                out = self.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=torch.zeros(1, 1, 1, dtype=self.dtype)),
                    decoder_input_ids=torch.tensor([ids + [0] * rows]),
                    past_key_values=_Filled(),
                    use_cache=False,
                )
        finally:
            current.reset(token)
        return Outputs(out.logits[0, wanted, : len(self.token_bytes)].float(), hidden, self.head)

    @torch.inference_mode()
    def head(self, hidden_ND: Tensor, norm: bool) -> Tensor:
        """float32 [N, V]; see `Outputs.head`."""
        padded = pad(hidden_ND, (0, 0, 0, padding(len(hidden_ND), self.dtype, self.packed)))
        return self.inside.head(padded, norm)[: len(hidden_ND), : len(self.token_bytes)]

    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        self.cache.keep(slot, length, path)

    def fork(self, source: int, target: int, length: int) -> None:
        """The source and the first `length` decoder columns are shared."""
        self.cache.pages.fork(source, target, length)
        self.length[target] = self.length[source]
        self.sources.pages.fork(source, target, self.length[source])

    def release(self, slot: int) -> None:
        self.cache.pages.release(slot)
        self.sources.pages.release(slot)
        self.length.pop(slot, None)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """During the block slots need no source: the check at start feeds decoders alone."""
        self.unread = tuple(range(3, 20))
        try:
            yield
        finally:
            self.unread = None


class _Reading:
    """The encoder's pass over one source: everybody sees everybody."""

    def attend(self, module: Any, q_HMD: Tensor, k_HMD: Tensor, v_HMD: Tensor, scale: float, bias: Any) -> Tensor:
        scores = torch.matmul(q_HMD, k_HMD.transpose(-1, -2)).float() * scale
        if bias is not None:
            scores = scores + bias[0].float()
        return torch.matmul(scores.softmax(-1).to(v_HMD.dtype), v_HMD)


class _Decoding:
    """One flat call of the decoder. position_M: each node's column in the chain of its path, padding included."""

    def __init__(self, lane: Seq2SeqLane, runs: Sequence[Run], rows: int) -> None:
        self.lane = lane
        self.own, self.across = Layout(lane.cache, runs), Across(lane.sources, runs, lane.length)
        self.position_M = pad(self.own.position_M, (0, rows))
        self.bias = _Relative(lane.biased) if lane.biased is not None else None

    def attend(self, module: Any, q_HMD: Tensor, k_HMD: Tensor, v_HMD: Tensor, scale: float, bias: Any) -> Tensor:
        query_MHD = q_HMD.transpose(0, 1)
        index = self.lane.cross.get(module)
        if index is not None:
            return weigh(self.across, index, query_MHD, scale).transpose(0, 1)
        own, index = self.own, module.layer_idx
        key_MHD, value_MHD = (x_HMD.transpose(0, 1)[: own.size] for x_HMD in (k_HMD, v_HMD))
        self.lane.cache.write(index, own.page_M, own.offset_M, key_MHD, value_MHD)
        return weigh(own, index, query_MHD, scale, bias=self.bias).transpose(0, 1)


class _Relative:
    """T5's bias by distance, from the first layer's table, made once per call and part of it. See `attention.Bias`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, position_N: Tensor, columns: int) -> Tensor:
        size = len(position_N), columns
        held = self._made.get(size)
        if held is None or not torch.equal(held[0], position_N):
            module = self.module
            bucket_NS = module._relative_position_bucket(
                torch.arange(columns) - position_N[:, None], bidirectional=False,
                num_buckets=module.relative_attention_num_buckets, max_distance=module.relative_attention_max_distance,
            )  # fmt: skip
            held = position_N, module.relative_attention_bias(bucket_NS).transpose(1, 2).float()
            self._made[size] = held
        return held[1]


current: ContextVar[_Reading | _Decoding] = ContextVar("seq2seq")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, H, M, D] -> [1, M, H, D]."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out_HMD = current.get().attend(module, query[0], key[0], value[0], scale, position_bias)
    return out_HMD.transpose(0, 1)[None], None


class _Always(dict):
    """Every layer's cross keys are there."""

    def get(self, key: Any, default: Any = None) -> bool:
        return True


class _Nothing:
    """A layer's cross keys, as far as the model looks: `_Decoding` takes the slots' own."""

    keys = values = torch.zeros(1, 1, 1, 1)


class _Everywhere:
    def __getitem__(self, layer: int) -> type[_Nothing]:
        return _Nothing


class _Passing:
    """A cache that hands new keys through."""

    layers = _Everywhere()
    is_compileable = False

    def update(self, key: Tensor, value: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        return key, value

    def get_seq_length(self, *rest: Any) -> int:
        return 0


class _Filled(EncoderDecoderCache):
    """Tells the model that cross keys exist, so that it does not make them again at every step."""

    def __init__(self) -> None:
        self.is_updated: Any = _Always()
        self.self_attention_cache: Any = _Passing()
        self.cross_attention_cache: Any = _Passing()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _place(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positions of a flat call's nodes are their columns, not their places in it."""
    state = current.get(None)
    return given, {**named, "position_ids": state.position_M} if isinstance(state, _Decoding) else named


def _first(module: nn.Module, *names: str) -> Callable[[Tensor], Tensor]:
    return next(getattr(module, name) for name in names if hasattr(module, name))
