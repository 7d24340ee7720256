"""The torch engine: the loop over a transformers model, on the CPU, with the promise that this processor can keep."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raydecode import models
from raydecode.engine.dtype import fast_dtype
from raydecode.engine.loop import Loop
from raydecode.engine.spelling import spelling
from raydecode.engine.torch.family import check_family
from raydecode.engine.torch.heap import keep_freed_memory
from raydecode.engine.torch.int8 import check_int8
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.torch.linear import packs
from raydecode.engine.torch.options import check_names, checked_compile, checked_weights, served
from raydecode.engine.torch.promise import Promise, check_lane
from raydecode.engine.torch.seq2seq import Seq2SeqLane
from raydecode.errors import Refused, UserError
from raydecode.models.memory import available_bytes

SHARE = 0.5
"""Part of the free memory that the cache may grow into when `cache_tokens` is not given."""

RETAINED_BYTES = 256 << 20
"""Pages kept after their rows, for prompts that begin alike, when `retain_tokens` is not given: at most a quarter."""


class TorchEngine(Loop):
    """slots: rows at once. max_length: context in tokens; None = the model's own, or what the cache holds.

    options: chunk (prompt tokens per step), cache_tokens (tokens of all rows that the cache may hold; rows beyond that
    wait), retain_tokens (of those, kept after their rows), trust_remote_code, weights ("full", or "int8": see `int8`),
    compile (kernels built by this machine's C++ compiler, see `native`; the start takes seconds longer, once: true,
    false, or "auto", wherever they serve).
    lanes: name -> folder of models to draft with, in the same dtype, each with a cache of as many tokens.
    Errors: `models.ModelError`, `UserError`, `Refused`.
    """

    name = "torch"

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "auto",
        slots: int = 32,
        max_length: int | None = None,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
        lanes: Mapping[str, Path] | None = None,
        **loop: Any,
    ) -> None:
        given = dict(options or {})
        check_names(given)
        if threads:
            torch.set_num_threads(threads)
        self.dtype = fast_dtype(dtype, gpu=False)
        trust = bool(given.pop("trust_remote_code", False))
        weights = checked_weights(given.pop("weights", "full"))
        compiled = checked_compile(given.pop("compile", "auto"))
        check_family(folder, trust_remote_code=trust)
        card = models.check(folder, dtype=self.dtype)
        compiled, why_not = served(compiled, self.dtype, card.encoder_decoder)
        if weights == "int8" and not compiled:
            check_int8()
        if weights == "int8" and card.encoder_decoder:
            raise Refused(
                "weights: int8 is for decoder-only models", field="engine.options.weights", value="int8", nearest="full"
            )
        beside = _second_head(card, self.dtype)
        drafts = {name: _draft_card(name, path, card, self.dtype, trust) for name, path in (lanes or {}).items()}
        for draft in drafts.values():
            beside += draft.weight_bytes(self.dtype) + _second_head(draft, self.dtype)
        drafting = sum(draft.kv_bytes_per_token(self.dtype) for draft in drafts.values())
        if card.encoder_decoder:  # a source per slot, beside the outputs
            beside += slots * (max_length or card.context) * card.kv_bytes_per_token(self.dtype)
        most, wanted = slots * (max_length or card.context), given.pop("cache_tokens", None)
        tokens = _tokens(card, self.dtype, most, wanted, beside, drafting)
        context = _context(card, tokens, max_length)
        room = beside + context * drafting
        models.check(folder, dtype=self.dtype, kv_tokens=context, beside=room)  # one row at full length must fit
        _check_spelling(folder, lanes or {}, trust)
        retain = given.pop("retain_tokens", None)
        if retain is None:
            retain = min(tokens // 4, RETAINED_BYTES // max(card.kv_bytes_per_token(self.dtype), 1))
        common: dict[str, Any] = {
            "dtype": self.dtype, "slots": slots, "context": context, "trust_remote_code": trust,
        }  # fmt: skip
        lane: Any = (
            Seq2SeqLane(folder, **common, tokens=tokens)
            if card.encoder_decoder
            else TorchLane(folder, **common, tokens=tokens, retain=retain, weights=weights, compiled=compiled)
        )
        further = {
            name: TorchLane(
                path,
                **{**common, "context": min(context, drafts[name].context)},
                tokens=tokens,
                weights=weights,
                compiled=compiled,
            )
            for name, path in (lanes or {}).items()
        }
        super().__init__(lane, lanes=further, **given, **loop)
        keep_freed_memory()
        with lane.rehearsing() if card.encoder_decoder else contextlib.nullcontext():
            self.promise_found: Promise = check_lane(lane, self.dtype)
        found = self.promise_found
        self.promise, self.device, self.noise = found.promise, found.device, found.noise
        self.kernels = "built here" if compiled else "torch's"
        self.detail = f"{found.detail}; {why_not}" if why_not else found.detail


def _second_head(card: models.ModelCard, dtype: str) -> int:
    """Bytes of a tied output layer, where it is packed beside the embedding."""
    return card.head_bytes(dtype) if card.tied and packs(getattr(torch, dtype)) else 0


def _draft_card(name: str, folder: Path, target: models.ModelCard, dtype: str, trust: bool) -> models.ModelCard:
    """The figures of a model to draft with; errors name the drafter's option and the model `name`."""
    try:
        check_family(folder, trust_remote_code=trust)
        card = models.check(folder, dtype=dtype)
    except UserError as error:
        raise type(error)(
            error.message, field="decoding.drafter.model", value=name, nearest=error.nearest, hint=error.hint
        ) from error
    if card.encoder_decoder or target.encoder_decoder:
        raise Refused(
            "a draft model and its target are decoders", field="decoding.drafter.model", value=name,
            hint="drafter: none",
        )  # fmt: skip
    return card


def _check_spelling(folder: Path, lanes: Mapping[str, Path], trust: bool) -> None:
    """Raise UserError, before weights load, for a vocabulary with too little in common."""
    if lanes:
        own = models.Vocabulary.of(folder, trust_remote_code=trust)
        for name, path in lanes.items():
            other = models.Vocabulary.of(path, trust_remote_code=trust)
            spelling(own.token_bytes, own.eos_ids, other.token_bytes, other.eos_ids, name)


def _tokens(card: models.ModelCard, dtype: str, most: int, wanted: int | None, beside: int, drafting: int = 0) -> int:
    """Tokens that the cache may hold: `wanted`, or what fits SHARE of the memory that the weights, and the bytes
    beside them, leave free. drafting: bytes per token in the caches of draft models."""
    if wanted is not None:
        if wanted < 2:
            raise UserError(
                f"a cache of {wanted} tokens holds no row", field="engine.options.cache_tokens", value=wanted,
                nearest=str(min(most, 4096)), hint="at least the longest row; leave it out to use half the free memory",
            )  # fmt: skip
        return wanted
    free = available_bytes("cpu")
    if free is None:
        return most
    room = int((free - card.weight_bytes(dtype) - beside) * SHARE / max(card.kv_bytes_per_token(dtype) + drafting, 1))
    return min(most, max(room, 512))


def _context(card: models.ModelCard, tokens: int, max_length: int | None) -> int:
    """Most tokens of one row: it must fit the cache when it is alone."""
    if max_length is None:
        return min(card.context, tokens)
    limit = min(card.context, tokens)
    if not 2 <= max_length <= limit:
        what = f"the model's context is {card.context}" if limit == card.context else f"the cache holds {tokens}"
        raise UserError(
            f"rows of {max_length} tokens: {what}", field="engine.max_length", value=max_length,
            nearest=str(min(max(max_length, 2), limit)),
        )  # fmt: skip
    return max_length
