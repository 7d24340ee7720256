"""What every command prints with: results to stdout, the rest to stderr, errors without a traceback."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from raydecode.errors import RaydecodeError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(error: RaydecodeError) -> None:
    """First line red, the nearest valid value and the next step under it."""
    head, *rest = str(error).splitlines() or [type(error).__name__]
    err.print(Text(head, style="bold red"))
    for line in rest:
        err.print(Text(line))


def print_json(value: Any) -> None:
    """Plain JSON on stdout, for pipes."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def count(n: float) -> str:
    """1234567 as `1,234,567`."""
    return f"{n:,.0f}"


def span(seconds: float) -> str:
    """3725 as `1 h 02 min`, 75 as `1 min 15 s`, 4.2 as `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"
