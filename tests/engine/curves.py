"""Devices for tests of `auto`: a processor where tokens are dear, an accelerator where they are free for a while."""

from __future__ import annotations

from raydecode.engine.cost import CostCurve


def cpu(**given) -> CostCurve:
    """As SmolLM2-135M in bfloat16 on two threads: seconds of 1 to 64 tokens of one row."""
    return CostCurve((1, 2, 4, 8, 16, 32, 64), (0.0289, 0.0297, 0.0324, 0.0365, 0.0450, 0.0601, 0.0986), **given)


def gpu(**given) -> CostCurve:
    """Bound by reading weights up to 80 tokens, then by arithmetic."""
    return CostCurve((1, 80, 160), (0.0200, 0.0202, 0.0400), **given)
