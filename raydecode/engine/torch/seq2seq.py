"""Encoder-decoders as a lane: the source is encoded once per request, then the decoder's rows go through one flat call.

A row's context is the decoder's (its start token, then the output); the prompt is the source and belongs to the slot:
`read` encodes it alone, so that its bits depend on nobody, and keeps each layer's cross keys and values, which samples
of one request share. Attention is this lane's own: per row, explicit, in tiles and pieces: a row's
bits are its own here too. T5's relative position bias is computed from absolute columns, since the model, fed one flat
sequence, cannot know them; BART's and Marian's positions are handed to their position tables for the same reason.

Legend: M nodes of the call, T of one row, H heads, S keys, D head size.
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
from raydecode.engine.torch.layout import TILE
from raydecode.engine.torch.linear import PackedLinear, pack, padding
from raydecode.request import Ids, Messages, Prompt, Text
from raydecode.tree import TokenTree

NAME = "raydecode_seq2seq"
BLOCK, PIECE = 64, 128
"""Columns come in blocks; weighted sums in pieces, because one product splits its sum by the number of keys."""

Pair = tuple[Tensor, Tensor]


class Seq2SeqLane:
    """A T5, BART or Marian folder. slots: rows at once; context: most tokens of a source, and of an output."""

    page = BLOCK
    sites: Sequence[str] = ()
    blocks: Sequence[str] = ()

    def __init__(self, folder: Path, *, dtype: str, slots: int, context: int, trust_remote_code: bool = False) -> None:
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
        self.cross = [part for name, part in decoder.named_modules() if name.endswith(ends)]
        self.biased = next((p for p in decoder.modules() if getattr(p, "has_relative_attention_bias", False)), None)
        if hasattr(decoder, "embed_positions"):
            decoder.embed_positions.register_forward_pre_hook(_place, with_kwargs=True)
        self._sources: dict[int, list[Pair]] = {}
        self._own: dict[int, dict[int, Pair]] = {}
        self._length: dict[int, int] = {}

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

    def reserve(self, slot: int, start: int, length: int) -> bool:
        """Slots grow by themselves, up to the context."""
        return True

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        """Nothing is shared between requests: the decoder's keys depend on the source."""
        return start

    def publish(self, slot: int, ids: Sequence[int]) -> None: ...

    def check(self, held: Sequence[int]) -> None:
        assert self._sources.keys() <= set(held), (sorted(self._sources), held)

    @torch.inference_mode()
    def read(self, slot: int, source: Sequence[int]) -> None:
        """Encode a source into a slot."""
        token = current.set(_Reading())
        try:
            states_1SD = self.model.get_encoder()(input_ids=torch.tensor([list(source)])).last_hidden_state
        finally:
            current.reset(token)
        rows = padding(len(source), self.dtype, self.packed)
        flat_SD = pad(states_1SD[0], (0, 0, 0, rows))
        pairs = []
        for module in self.cross:
            both = []
            for layer in (_first(module, "k_proj", "k"), _first(module, "v_proj", "v")):
                heads = getattr(module, "num_heads", None) or module.n_heads
                x_HSD = layer(flat_SD)[: len(source)].unflatten(1, (heads, -1)).transpose(0, 1)
                both.append(pad(x_HSD, (0, 0, 0, -len(source) % BLOCK)).contiguous())
            pairs.append((both[0], both[1]))
        self._sources[slot] = pairs
        self._own[slot], self._length[slot] = {}, len(source)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], needs: Needs, hooks: Sequence[Hook] = ()) -> Outputs:
        ids: list[int] = []
        runs: list[tuple[int, int, int, int]] = []  # slot, first column, first node, nodes
        wanted: list[int] = []
        for chunk in chunks:
            if chunk.slot not in self._sources and self.unread:
                self.read(chunk.slot, self.unread)
            tree = chunk.tree or TokenTree((), (), ())
            assert tree.parent == tuple(range(-1, len(tree) - 1)), "this lane verifies chains"
            runs.append((chunk.slot, chunk.start, len(ids), len(chunk)))
            ids += chunk.prefix
            wanted += range(len(ids), len(ids) + len(tree))
            ids += tree.token
        rows = padding(len(ids), self.dtype, self.packed)
        column_M = torch.tensor([start + i for _, start, _, count in runs for i in range(count)] + [0] * rows)
        token = current.set(_Decoding(self, runs, column_M))
        try:
            out = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=torch.zeros(1, 1, 1, dtype=self.dtype)),
                decoder_input_ids=torch.tensor([ids + [0] * rows]),
                past_key_values=_Filled(),
                use_cache=False,
            )
        finally:
            current.reset(token)
        logits_MV = out.logits[0, wanted, : len(self.token_bytes)].float()
        if len(wanted) > sum(chunk.tree is not None for chunk in chunks):
            self._refeed(chunks, logits_MV)
        return Outputs(logits_MV)

    def _refeed(self, chunks: Sequence[Chunk], logits_MV: Tensor) -> None:
        """Chains that met a NaN, token by token: 0 * NaN let a later node into an earlier one."""
        at = 0
        for chunk in chunks:
            size = len(chunk.tree) if chunk.tree else 0
            if chunk.tree and size > 1 and not bool(logits_MV[at : at + size].sum().isfinite()):
                for i, token in enumerate(chunk.tree.token):
                    start = chunk.start + (len(chunk.prefix) + i if i else 0)
                    self.keep(chunk.slot, start, ())
                    one = Chunk(chunk.slot, start, () if i else chunk.prefix, TokenTree.root(token))
                    logits_MV[at + i] = self.forward([one], Needs()).logits_MV[0]
            at += size

    @torch.inference_mode()
    def keep(self, slot: int, length: int, path: Sequence[int]) -> None:
        assert list(path) == list(range(len(path))), "this lane keeps chains"
        for keys, values in self._own.get(slot, {}).values():
            keys[:, length + len(path) :] = 0
            values[:, length + len(path) :] = 0

    @torch.inference_mode()
    def fork(self, source: int, target: int, length: int) -> None:
        """The source's cross keys are shared, the first `length` decoder columns copied."""
        self._sources[target], self._length[target] = self._sources[source], self._length[source]
        self._own[target] = {layer: (k.clone(), v.clone()) for layer, (k, v) in self._own[source].items()}
        self.keep(target, length, ())

    def release(self, slot: int) -> None:
        self._sources.pop(slot, None)
        self._own.pop(slot, None)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """During the block slots need no source: the check at start feeds decoders alone."""
        self.unread = tuple(range(3, 20))
        try:
            yield
        finally:
            self.unread = None

    def own(self, slot: int, layer: int, length: int, like: Tensor) -> Pair:
        """The decoder's keys and values of a slot and layer, with room for `length` columns."""
        held = self._own[slot]
        size = -(-length // BLOCK) * BLOCK
        if layer not in held or held[layer][0].shape[1] < size:
            grown = [like.new_zeros(like.shape[0], 2 * size, like.shape[2]) for _ in range(2)]
            for new, old in zip(grown, held.get(layer, ()), strict=False):
                new[:, : old.shape[1]] = old
            held[layer] = grown[0], grown[1]
        return held[layer][0], held[layer][1]

    def source(self, slot: int, layer: int) -> tuple[Tensor, Tensor, int]:
        return *self._sources[slot][layer], self._length[slot]


class _Reading:
    """The encoder's pass over one source: everybody sees everybody."""

    def attend(self, module: Any, q_HMD: Tensor, k_HMD: Tensor, v_HMD: Tensor, scale: float, bias: Any) -> Tensor:
        scores = torch.matmul(q_HMD, k_HMD.transpose(-1, -2)).float() * scale
        if bias is not None:
            scores = scores + bias[0].float()
        return torch.matmul(scores.softmax(-1).to(v_HMD.dtype), v_HMD)


class _Decoding:
    """One flat call of the decoder."""

    def __init__(self, lane: Seq2SeqLane, runs: Sequence[tuple[int, int, int, int]], column_M: Tensor) -> None:
        self.lane, self.runs, self.column_M = lane, runs, column_M
        self._layer = {module: i for i, module in enumerate(lane.cross)}
        self._bias: dict[int, Tensor] = {}

    def attend(self, module: Any, q_HMD: Tensor, k_HMD: Tensor, v_HMD: Tensor, scale: float, bias: Any) -> Tensor:
        out_HMD = torch.zeros_like(q_HMD)
        for slot, start, first, count in self.runs:
            rows = slice(first, first + count)
            if module in self._layer:
                keys, values, length = self.lane.source(slot, self._layer[module])
                hidden_TS = (torch.arange(keys.shape[1]) >= length).expand(count, -1)
                add: Tensor | None = None
            else:
                end = start + count
                size = -(-end // BLOCK) * BLOCK
                keys, values = self.lane.own(slot, module.layer_idx, end, k_HMD)
                keys[:, start:end], values[:, start:end] = k_HMD[:, rows], v_HMD[:, rows]
                keys, values = keys[:, :size], values[:, :size]
                hidden_TS = torch.arange(size) > torch.arange(start, end)[:, None]
                add = self._relative(slot, start, count, size)
            out_HMD[:, rows] = _weigh(q_HMD[:, rows], keys, values, hidden_TS, scale, add)
        return out_HMD

    def _relative(self, slot: int, start: int, count: int, size: int) -> Tensor | None:
        """T5's bias [H, T, S], made once per row and call, by the first layer's table."""
        module: Any = self.lane.biased
        if module is not None and slot not in self._bias:
            away_TS = torch.arange(size) - torch.arange(start, start + count)[:, None]
            bucket_TS = module._relative_position_bucket(
                away_TS, bidirectional=False, num_buckets=module.relative_attention_num_buckets,
                max_distance=module.relative_attention_max_distance,
            )  # fmt: skip
            self._bias[slot] = module.relative_attention_bias(bucket_TS).permute(2, 0, 1).float()
        return self._bias.get(slot)


def _weigh(q_HTD: Tensor, keys: Tensor, values: Tensor, hidden_TS: Tensor, scale: float, add: Tensor | None) -> Tensor:
    """softmax(q k^T scale + add) v, query rows in multiples of TILE, keys summed in pieces of PIECE."""
    count = q_HTD.shape[1]
    scores = torch.matmul(pad(q_HTD, (0, 0, 0, -count % TILE)), keys.transpose(-1, -2))[:, :count].float() * scale
    scores = (scores if add is None else scores + add).masked_fill(hidden_TS, float("-inf"))
    weights = pad(scores.softmax(-1).to(values.dtype), (0, 0, 0, -count % TILE))
    out = torch.matmul(weights[..., :PIECE], values[:, :PIECE])
    for at in range(PIECE, values.shape[1], PIECE):
        out = out + torch.matmul(weights[..., at : at + PIECE], values[:, at : at + PIECE])
    return out[:, :count]


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
    return given, {**named, "position_ids": state.column_M} if isinstance(state, _Decoding) else named


def _first(module: nn.Module, *names: str) -> Callable[[Tensor], Tensor]:
    return next(getattr(module, name) for name in names if hasattr(module, name))
