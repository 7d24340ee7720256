"""Which engines made the rows of an output, and under which promise; kept in its log beside the job.

The job says which model, engine and dtype; what the machine made of that is known only once an engine is up: whether
its logits are the same bits in every batch (`bitwise`), or differ by some noise (`near-ties only`), and whose kernels
compute them. Each kind of engine that works on an output is recorded once, before it gets a row. Rows of one output
under two promises, or from two sets of kernels, are no error, for each is a right draw; but one seed then means one
text within each of them only, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KIND = ("engine", "dtype", "device", "kernels", "promise")
"""What tells two engines apart; `noise` and `detail` are kept as the first of a kind said them."""


def provenance(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an engine says of itself: what the log keeps."""
    return {name: told[name] for name in (*KIND, "noise", "detail") if told.get(name) is not None}


def is_known(engines: Sequence[Mapping[str, Any]], one: Mapping[str, Any]) -> bool:
    return any(all(old.get(name) == one.get(name) for name in KIND) for old in engines)


def difference(engines: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence that names the promises and kernels, when there are several."""
    first = {_way(one): one for one in reversed(engines)}
    if len(first) < 2:
        return None
    named = [_named(one) for one in engines if one is first[_way(one)]]
    what = "promises" if len({promise for promise, _ in first}) > 1 else "kernels"
    return (
        f"rows of this output are made under different {what}: {'; '.join(named)}. Each text is right, but made "
        "again under the other it may differ at near-ties"
    )


def _way(one: Mapping[str, Any]) -> tuple[Any, Any]:
    return one.get("promise"), one.get("kernels")


def _named(one: Mapping[str, Any]) -> str:
    promise, noise = str(one.get("promise") or "none stated"), float(one.get("noise") or 0)
    where = ", ".join(str(one[name]) for name in ("engine", "dtype", "device") if one.get(name))
    where += f", kernels {one['kernels']}" if one.get("kernels") else ""
    return f"{promise}{f' with noise {noise:.2g}' if noise else ''} ({where})"
