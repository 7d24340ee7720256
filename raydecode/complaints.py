"""What a validator found, in our words: field, value, what was wanted, nearest valid name.

Findings are those of pydantic (`ValidationError.errors()`), taken as plain data: job sections, rows' decoding and
methods' options are all refused in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raydecode.errors import UserError, nearest

KINDS = {
    bool: "true/false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    type(None): "null",
}


def kind(value: Any) -> str:
    """A value's type in a YAML author's words."""
    return KINDS.get(type(value), type(value).__name__)


def shown(value: Any, most: int = 60) -> str:
    """repr, cut."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def dotted(where: str, loc: Sequence[int | str]) -> str:
    """("decoding", "sampler", 0) as `decoding.sampler[0]`."""
    out = where
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "strings_type": "text or a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
"""A finding's type (pydantic's; `strings_type` is of raydecode/config/fields.py) -> what was wanted, in our words."""


def complaint(
    findings: Sequence[Mapping[str, Any]],
    keys: Callable[[Sequence[int | str]], Sequence[str]],
    where: str = "",
    method: str = "",
) -> UserError:
    """The first finding as an error; a wrong name before all others, because a typo explains a missing key.

    keys:   place -> the names that are valid there
    where:  the dotted field that the findings' places start from
    method: whose options these are; "" for a section of a job file
    """
    first = next((one for one in findings if one["type"] == "extra_forbidden"), findings[0])
    loc, value, field = first["loc"], first.get("input"), dotted(where, first["loc"])
    match first["type"]:
        case "extra_forbidden":
            known, of_method = keys(loc[:-1]), method and len(loc) == 1
            return UserError(
                f"{method} has no option '{loc[-1]}'" if of_method else f"no key '{loc[-1]}' here",
                field=field,
                value=value,
                nearest=nearest(loc[-1], known),
                hint=f"{'options' if of_method else 'keys'}: {', '.join(known) or 'none'}",
            )
        case "missing" if method:
            return UserError(f"{method} needs this option", field=field, hint=f"options: {', '.join(keys(loc[:-1]))}")
        case "missing":
            return UserError("this key is required", field=field, hint="raydecode init writes a commented job file")
        case "literal_error":
            expected = str(first.get("ctx", {}).get("expected", ""))
            choices = [choice.strip(" '") for choice in expected.replace(" or ", ",").split(",")]
            return UserError(
                f"no choice {shown(value)}",
                field=field,
                value=value,
                nearest=nearest(value, choices),
                hint=f"choices: {', '.join(choices)}",
            )
        case "too_short":
            return UserError("must not be empty", field=field, value=value)
        case wrong if wrong in WANTED:
            quotes = " (quote it in YAML)" if wrong == "string_type" and isinstance(value, int | float) else ""
            return UserError(
                f"needs {WANTED[wrong]}{quotes}, got {kind(value)}: {shown(value)}", field=field, value=value
            )
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return UserError(f"{said}, got {shown(value)}" if loc else said, field=field or None, value=value)
