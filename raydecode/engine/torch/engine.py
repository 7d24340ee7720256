"""The torch engine: the loop over a transformers model, on the CPU, with the promise that this processor can keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raydecode import models
from raydecode.engine.dtype import fast_dtype
from raydecode.engine.loop import Loop
from raydecode.engine.torch.family import check_family
from raydecode.engine.torch.lane import TorchLane
from raydecode.engine.torch.promise import Promise, check_lane
from raydecode.errors import UserError, nearest
from raydecode.models.memory import available_bytes

SHARE = 0.5
"""Part of the free memory that the cache may grow into when no `max_length` is given."""

OPTIONS = ("chunk", "trust_remote_code")


class TorchEngine(Loop):
    """slots: rows at once. max_length: context in tokens; None = the model's own, or what fits SHARE of memory.

    options: chunk (prompt tokens per step), trust_remote_code. Errors: `models.ModelError`, `UserError`, `Refused`.
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
        **loop: Any,
    ) -> None:
        given = dict(options or {})
        for name in given:
            if name not in OPTIONS:
                raise UserError(
                    f"the torch engine has no option '{name}'", field=f"engine.options.{name}", value=given[name],
                    nearest=nearest(name, OPTIONS), hint=f"options: {', '.join(OPTIONS)}",
                )  # fmt: skip
        if threads:
            torch.set_num_threads(threads)
        self.dtype = fast_dtype(dtype, gpu=False)
        trust = bool(given.pop("trust_remote_code", False))
        check_family(folder, trust_remote_code=trust)
        card = models.check(folder, dtype=self.dtype)
        context = _context(card, self.dtype, slots, max_length)
        models.check(folder, dtype=self.dtype, kv_tokens=context)  # one row at full length must fit
        lane = TorchLane(folder, dtype=self.dtype, slots=slots, context=context, trust_remote_code=trust)
        super().__init__(lane, **given, **loop)
        self.promise_found: Promise = check_lane(lane, self.dtype)
        found = self.promise_found
        self.promise, self.device, self.noise, self.detail = found.promise, found.device, found.noise, found.detail


def _context(card: models.ModelCard, dtype: str, slots: int, max_length: int | None) -> int:
    if max_length is not None:
        if not 2 <= max_length <= card.context:
            raise UserError(
                f"rows of {max_length} tokens: the model's context is {card.context}", field="engine.max_length",
                value=max_length, nearest=str(min(max(max_length, 2), card.context)),
            )  # fmt: skip
        return max_length
    free = available_bytes("cpu")
    if free is None:
        return card.context
    room = int((free - card.weight_bytes(dtype)) * SHARE / max(card.kv_bytes_per_token(dtype) * slots, 1))
    return max(min(card.context, room), min(card.context, 512))
