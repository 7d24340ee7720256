"""The two files of a report. Pure: the caller writes the bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from raydecode.report.page import page

VERSION = 1
"""Of report.json. Fields are added, not renamed."""


def files(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """name -> bytes."""
    whole = {"version": VERSION, "figures": figures, "facts": facts}
    return {
        "report.json": json.dumps(_finite(whole), indent=1, ensure_ascii=False, allow_nan=False, default=str).encode(),
        "report.html": page(figures, facts).encode(),
    }


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
