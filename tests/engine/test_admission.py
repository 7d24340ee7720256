"""The overflow table, enumerated: every case of a small context against its definition."""

from __future__ import annotations

import pytest

from raydecode.engine.admission import Fit, fit_prompt
from raydecode.events import Fault
from raydecode.request import OVERFLOW

CONTEXT = 6


@pytest.mark.parametrize("overflow", OVERFLOW)
def test_every_fit_fills_the_context_and_cuts_no_more_than_needed(overflow: str) -> None:
    for prompt_len in range(1, 10):
        for max_tokens in range(1, 10):
            fit = fit_prompt(prompt_len, max_tokens, CONTEXT, overflow)
            if prompt_len + max_tokens <= CONTEXT:
                assert fit == Fit(0, 0, max_tokens)
            elif isinstance(fit, Fit):
                kept = fit.cut(range(prompt_len))
                assert len(kept) >= 1
                assert fit.max_tokens >= 1
                assert len(kept) + fit.max_tokens == CONTEXT
                assert (len(kept) < prompt_len) == (overflow != "shorten")
                assert (fit.max_tokens < max_tokens) == (overflow == "shorten")
            else:
                never = {"error": True, "shorten": prompt_len >= CONTEXT}.get(overflow, max_tokens >= CONTEXT)
                assert never
                assert (fit.stage, fit.kind) == ("admission", "ContextOverflow")


def test_which_side_is_cut() -> None:
    ids = (10, 11, 12, 13, 14)
    left, right = fit_prompt(5, 3, CONTEXT, "cut_left"), fit_prompt(5, 3, CONTEXT, "cut_right")
    assert isinstance(left, Fit)
    assert isinstance(right, Fit)
    assert (left.cut(ids), right.cut(ids)) == ((12, 13, 14), (10, 11, 12))


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "overflow", "says"),
    [
        (5, 3, "error", "lower max_tokens to 1"),
        (7, 3, "error", "set overflow to 'cut_left'"),
        (7, 6, "error", "lower max_tokens below 6"),
        (6, 1, "shorten", "below 6 tokens"),
        (2, 6, "cut_left", "lower max_tokens below 6"),
    ],
)
def test_a_fault_has_the_figures_and_the_next_step(prompt_len: int, max_tokens: int, overflow: str, says: str) -> None:
    fault = fit_prompt(prompt_len, max_tokens, CONTEXT, overflow)
    assert isinstance(fault, Fault)
    needed = prompt_len + max_tokens
    assert f"{prompt_len} prompt tokens + max_tokens {max_tokens} = {needed} > context 6" in fault.message
    assert says in fault.message


def test_empty_prompt_and_unknown_policy() -> None:
    empty, unknown = fit_prompt(0, 3, CONTEXT, "shorten"), fit_prompt(2, 3, CONTEXT, "cutleft")
    assert isinstance(empty, Fault)
    assert isinstance(unknown, Fault)
    assert empty.kind == "EmptyPrompt"
    assert "nearest: cut_left" in unknown.message
