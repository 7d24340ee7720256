"""Does a request fit the context, and what is cut if not: pure, the same on every engine.

    needed = prompt tokens + max_tokens <= context            nothing to do
    otherwise, by `Request.overflow`:
      error      a Fault with the figures
      shorten    max_tokens = context - prompt               (the output gives way; at least 1 token must remain)
      cut_left   the first needed - context prompt tokens go (the end of the prompt matters: chat, continuation)
      cut_right  the last needed - context prompt tokens go  (the start of the prompt matters: a document to classify)

An encoder-decoder's prompt has a context of its own (`fit_source`); the output then fits the decoder's.

A Fault ends that row alone. All lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydecode.errors import RowError, nearest
from raydecode.events import Fault
from raydecode.request import OVERFLOW

STAGE = "admission"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a request enters: prompt tokens to drop on each side, and the output tokens it may produce."""

    cut_left: int
    cut_right: int
    max_tokens: int

    def cut(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The prompt as it is decoded."""
        return tuple(ids[self.cut_left : len(ids) - self.cut_right])


def fit_prompt(prompt_len: int, max_tokens: int, context: int, overflow: str = "error") -> Fit | Fault:
    """How a prompt of `prompt_len` and `max_tokens` of output share `context`, or why they cannot."""
    if overflow not in OVERFLOW:
        near = nearest(overflow, OVERFLOW)
        return Fault(STAGE, "UnknownOverflow", f"overflow '{overflow}': one of {', '.join(OVERFLOW)}; nearest: {near}")
    if prompt_len < 1:
        return Fault(STAGE, "EmptyPrompt", "the prompt has no tokens; a model needs at least one to predict from")
    excess = prompt_len + max_tokens - context
    if excess <= 0:
        return Fit(0, 0, max_tokens)
    figures = f"{prompt_len} prompt tokens + max_tokens {max_tokens} = {prompt_len + max_tokens} > context {context}"
    if overflow == "shorten" and prompt_len < context:
        return Fit(0, 0, context - prompt_len)
    if overflow in ("cut_left", "cut_right") and excess < prompt_len:
        return Fit(excess, 0, max_tokens) if overflow == "cut_left" else Fit(0, excess, max_tokens)
    return Fault(STAGE, "ContextOverflow", f"{figures}; {_advice(prompt_len, max_tokens, context, overflow)}")


def fit_source(ids: Sequence[int], context: int, overflow: str) -> tuple[int, ...]:
    """What an encoder reads: it has a context of its own, where the prompt is alone. Raises RowError."""
    if len(ids) > context and overflow in ("error", "shorten"):
        figures = f"{len(ids)} prompt tokens > context {context} of the encoder"
        raise RowError(STAGE, "ContextOverflow", f"{figures}; set overflow to 'cut_left' or 'cut_right'")
    fit = fit_prompt(len(ids), 1, context + 1, overflow)
    if isinstance(fit, Fault):
        raise RowError(fit.stage, fit.kind, fit.message)
    return fit.cut(ids)


def _advice(prompt_len: int, max_tokens: int, context: int, overflow: str) -> str:
    """The next step, with the figure that would fit."""
    if overflow == "shorten":
        return f"'shorten' leaves no room for a token; cut the prompt below {context} tokens or use 'cut_left'"
    if overflow != "error":
        return f"'{overflow}' would leave no prompt; lower max_tokens below {context}"
    if prompt_len < context:
        return f"lower max_tokens to {context - prompt_len}, or set overflow to 'shorten', 'cut_left' or 'cut_right'"
    room = "set overflow to 'cut_left' or 'cut_right'" if max_tokens < context else f"lower max_tokens below {context}"
    return f"the prompt alone fills the context: shorten it, or {room}"
