"""vLLM's own speculation: `engine.options.speculative_config`, and what cannot stand beside it. Imports no vLLM.

    speculative_config: ngram                                           a method's name, its fields as in METHODS
    speculative_config: {method: ngram, num_speculative_tokens: 4}      vLLM's own words; what is not said as in METHODS

Its other methods (trained heads, `ngram_gpu`) were not run behind our verification and are refused by name. So is what
gives up the law that a text does not depend on its drafts: `synthetic` verification accepts by rate, not by the model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from raydecode.errors import Refused, nearest
from raydecode.request import DecodingSpec

FIELD = "engine.options.speculative_config"

METHODS: dict[str, dict[str, Any]] = {
    "draft_model": {"num_speculative_tokens": 4},
    "ngram": {"num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "suffix": {"num_speculative_tokens": 16},
}
"""vLLM's methods that run here, and their fields where a job does not say them."""

LONGEST = 128
"""Most drafted tokens per row and step that vLLM's verification takes (rejection_sampler.MAX_SPEC_LEN)."""


def speculation(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """vLLM's words for how it drafts for all rows, defaults filled in; None where it does not. Not checked."""
    asked = options.get("speculative_config")
    if not asked:
        return None
    given = {"method": asked} if isinstance(asked, str) else dict(asked)
    method = given.setdefault("method", "draft_model" if "model" in given else None)
    return {**METHODS.get(str(method), {}), **given}


def refuse_speculation(options: Mapping[str, Any], drafts: int = 0) -> Refused | None:
    """Why an engine with these options does not start. drafts: > 0 where rows have drafters of ours."""
    asked = options.get("speculative_config")
    if asked and not isinstance(asked, str | Mapping):
        return Refused("a method's name, or a mapping in vLLM's words", field=FIELD, value=asked, nearest="ngram")
    given = speculation(options)
    if given:
        refused = _method(given)
        if refused:
            return refused
    if drafts and given:
        return both("drafters of rows", given, FIELD, given["method"])
    if not (drafts or given):
        return None
    for name, why in {
        "async_scheduling": "drafts are made of the last step's tokens, so a step waits for it",
        "logits_processors": "vLLM loads no logits processors where it speculates",
    }.items():
        if options.get(name):
            return Refused(why, field=f"engine.options.{name}", value=options[name], hint="leave it out")
    return None


def both(ours: str, given: Mapping[str, Any], field: str, value: str) -> Refused:
    """Two that would draft for one row."""
    return Refused(
        f"{ours} and vLLM's own '{given['method']}' cannot both draft", field=field, value=value,
        hint="leave one out: decoding.drafter: none (and no decoding.roster.drafters), or no speculative_config",
    )  # fmt: skip


def drafts_for(spec: DecodingSpec, options: Mapping[str, Any]) -> str | None:
    """Who drafts for a row: its own drafter, or vLLM's method, which serves all rows."""
    if spec.drafter:
        return spec.drafter.name
    given = speculation(options)
    return f"vllm {given['method']}" if given else None


def _method(given: Mapping[str, Any]) -> Refused | None:
    method = given["method"]
    if method == "custom_class":
        return Refused(
            "the class that vLLM takes drafts from is raydecode's here", field=f"{FIELD}.method", value=method,
            hint="a drafter of your own is a file with raydecode's contract: decoding.drafter",
        )  # fmt: skip
    if method not in METHODS:
        return Refused(
            f"vLLM's method '{method}' does not run here" if method else "no method", field=f"{FIELD}.method",
            value=method, nearest=nearest(str(method), METHODS), hint=f"those that do: {', '.join(METHODS)}",
        )  # fmt: skip
    if method == "suffix" and importlib.util.find_spec("arctic_inference") is None:
        return Refused(
            "vLLM's own suffix decoding needs the package arctic-inference", field=f"{FIELD}.method", value=method,
            nearest="ngram", hint="pip install arctic-inference, or decoding.drafter: suffix, which is raydecode's",
        )  # fmt: skip
    if method == "draft_model" and not given.get("model"):
        return Refused(
            "a draft model has to be named", field=f"{FIELD}.model", value=given.get("model"),
            hint="a source as in the section model, with the target's vocabulary",
        )  # fmt: skip
    tokens = given["num_speculative_tokens"]
    if not isinstance(tokens, int) or not 1 <= tokens <= LONGEST:
        near = min(max(tokens, 1), LONGEST) if isinstance(tokens, int) else METHODS[method]["num_speculative_tokens"]
        return Refused(
            f"tokens per row and step: 1 to {LONGEST}", field=f"{FIELD}.num_speculative_tokens", value=tokens,
            nearest=str(near),
        )  # fmt: skip
    way = given.get("rejection_sample_method", "standard")
    if way != "standard":
        return Refused(
            "drafts are verified by the row's own chain and noise", field=f"{FIELD}.rejection_sample_method", value=way,
            nearest="standard", hint="leave it out: a text does not depend on its drafts",
        )  # fmt: skip
    return None
