"""The torch engine's options, checked before anything loads; light enough for who only chooses an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from raydecode.engine.torch.linear import Weights
from raydecode.engine.torch.native import FIELD, check_native
from raydecode.errors import Refused, UserError, nearest

OPTIONS = ("cache_tokens", "chunk", "compile", "retain_tokens", "trust_remote_code", "weights")


def check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in OPTIONS:
            raise UserError(
                f"the torch engine has no option '{name}'", field=f"engine.options.{name}", value=given[name],
                nearest=nearest(name, OPTIONS), hint=f"options: {', '.join(OPTIONS)}",
            )  # fmt: skip


def checked_weights(given: Any) -> Weights:
    if given not in get_args(Weights):
        raise UserError(
            f"weights are kept as full or int8, not as {given!r}", field="engine.options.weights", value=given,
            nearest=nearest(str(given), get_args(Weights)),
        )  # fmt: skip
    return cast(Weights, given)


def checked_compile(given: Any) -> bool | Literal["auto"]:
    if isinstance(given, bool):
        return given
    if given != "auto":
        raise UserError(f"compile is true, false or auto, not {given!r}", field=FIELD, value=given, nearest="auto")
    return "auto"


def served(compiled: bool | Literal["auto"], dtype: str, encoder_decoder: bool) -> tuple[bool, str]:
    """Whether kernels of our own are used, and, where `auto` goes without, why. Raises Refused for `true`."""
    if compiled is False:
        return False, ""
    try:
        check_native(dtype, encoder_decoder)
    except Refused as refused:
        if compiled is True:
            raise
        return False, refused.message.replace("compile: true", "compile")
    return True, ""
