"""Which engines made the rows of an output, and under which promise; kept in its log beside the job.

The job says which model, engine and dtype; what the machine made of that is known only once an engine is up: whether
its logits are the same bits in every batch (`bitwise`), or differ by some noise (`near-ties only`). Each kind of engine
that works on an output is recorded once, before it gets a row. Rows of one output under two promises are no error, for
each is a right draw; but one seed then means one text within each promise only, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KIND = ("engine", "dtype", "device", "promise")
"""What tells two engines apart; `noise` and `detail` are kept as the first of a kind said them."""


def provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an engine says of itself: what the log keeps."""
    return {name: told[name] for name in (*KIND, "noise", "detail") if told.get(name) is not None}


def is_known(engines: Sequence[Mapping[str, Any]], one: Mapping[str, Any]) -> bool:
    return any(all(old.get(name) == one.get(name) for name in KIND) for old in engines)


def difference(engines: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence that names the promises, when there are several."""
    first = {one.get("promise"): one for one in reversed(engines)}
    if len(first) < 2:
        return None
    named = [_named(one) for one in engines if one is first[one.get("promise")]]
    return (
        f"rows of this output are made under different promises: {'; '.join(named)}. Each text is right, but made "
        "again under the other promise it may differ at near-ties"
    )


def _named(one: Mapping[str, Any]) -> str:
    promise, noise = str(one.get("promise") or "none stated"), float(one.get("noise") or 0)
    where = ", ".join(str(one[name]) for name in ("engine", "dtype", "device") if one.get(name))
    return f"{promise}{f' with noise {noise:.2g}' if noise else ''} ({where})"
