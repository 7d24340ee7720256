"""Who draws sampled tokens on vLLM: `engine.options.draws`. Imports no vLLM.

    draws: raydecode    the default: every row that is not plainly greedy is shaped and drawn by raydecode's processor,
                        with the row's own noise. One seed, one text: whether drafts are made or accepted, and the torch
                        engine's text up to near-ties. Such rows can be resumed, unless their sampler's state needs the
                        log-probabilities of past tokens.
    draws: vllm         chains that vLLM's parameters express are vLLM's, drawn by a generator per request. Where drafts
                        may be made raydecode draws all the same: beside drafts vLLM's rejection sampling would make a
                        text depend on them.

What the first costs, and what it saves, is measured: docs/log.md, "Who draws on vLLM".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydecode.errors import Refused, nearest

NAME = "draws"
FIELD = f"engine.options.{NAME}"
RAYDECODE, VLLM = "raydecode", "vllm"


def own_draws(options: Mapping[str, Any]) -> bool:
    """Whether raydecode draws for rows without drafts too."""
    return bool(options.get(NAME, RAYDECODE) != VLLM)


def refuse_draws(options: Mapping[str, Any]) -> Refused | None:
    """Why an engine with these options does not start."""
    given, choices = options.get(NAME, RAYDECODE), (RAYDECODE, VLLM)
    if given in choices:
        return None
    return Refused(
        f"who draws sampled tokens: {' or '.join(choices)}", field=FIELD, value=given,
        nearest=nearest(given, choices) or RAYDECODE,
    )  # fmt: skip
