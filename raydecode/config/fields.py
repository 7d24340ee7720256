"""The base of every section, the field types they share, and pydantic's complaints as ours.

Strict: `"64"` is not a number, `1` is not a flag; unknown keys are refused with the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic import WithJsonSchema as Schema

from raydecode.errors import UserError, nearest
from raydecode.request import Card


class Section(BaseModel):
    """A mapping of a job file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Strings = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_many),
    Schema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One string or a list of strings; kept as a tuple."""

Ints = Annotated[tuple[int, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


def as_card(value: Any, where: str) -> Card:
    """`top_k` or `{name: top_k, k: 5}` as a `Card`, its name and options not yet looked up."""
    match value:
        case Card():
            return value
        case str():
            return Card(value)
        case {"name": str(name), **options}:
            return Card(name, {str(k): v for k, v in options.items() if v is not None})
        case {"name": name}:
            raise UserError(f"a name is text, not {kind(name)}", field=f"{where}.name", value=name)
        case dict():
            raise UserError(
                f"a card needs a `name`, got {shown(value)}", field=where, value=value, hint="{name: top_k, k: 5}"
            )
    raise UserError(f"needs a name or a card, got {shown(value)}", field=where, value=value, hint="{name: top_k, k: 5}")


CardField = Annotated[
    Card,
    PlainValidator(lambda value: as_card(value, "card")),
    PlainSerializer(lambda card: card.to_json()),
    Schema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}], "title": "name or card"}),
]
"""A method: its name, or `{name: ..., option: ...}`."""

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


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


def complaint(error: ValidationError, model: type[BaseModel], where: str = "") -> UserError:
    """pydantic's first finding as one of ours: field, value, what was expected, nearest valid name."""
    found = error.errors(include_url=False)
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a typo explains a missing key
    loc, value = first["loc"], first.get("input")
    field = dotted(where, loc)
    match first["type"]:
        case "extra_forbidden":
            section = _section(model, loc[:-1])
            known = list(section.model_fields) if section else []
            return UserError(
                f"no key '{loc[-1]}' here",
                field=field,
                value=value,
                nearest=nearest(loc[-1], known),
                hint=f"keys: {', '.join(known)}",
            )
        case "missing":
            return UserError("this key is required", field=field, hint="raydecode init writes a commented job file")
        case "literal_error":
            choices = [
                c.strip(" '") for c in str(first.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")
            ]
            return UserError(
                f"no choice {shown(value)}",
                field=field,
                value=value,
                nearest=nearest(value, choices),
                hint=f"choices: {', '.join(choices)}",
            )
        case "model_type" | "model_attributes_type" | "dict_type":
            return UserError(f"needs a mapping, got {kind(value)}: {shown(value)}", field=field, value=value)
        case "int_type" | "float_type" | "string_type" | "bool_type" | "tuple_type" | "int_from_float" as wrong:
            wanted = {
                "int_type": "a whole number",
                "int_from_float": "a whole number",
                "float_type": "a number",
                "string_type": "text",
                "bool_type": "true or false",
                "tuple_type": "text or a list",
            }[wrong]
            quotes = " (quote it in YAML)" if wrong == "string_type" and isinstance(value, int | float) else ""
            return UserError(f"needs {wanted}{quotes}, got {kind(value)}: {shown(value)}", field=field, value=value)
        case "too_short":
            return UserError("must not be empty", field=field, value=value)
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return UserError(f"{said}, got {shown(value)}" if loc else said, field=field or None, value=value)


def _section(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The section at `loc`, following annotations."""
    at: type[BaseModel] | None = model
    for part in loc:
        found = at.model_fields.get(str(part)) if at else None
        options = [found.annotation, *get_args(found.annotation)] if found else []
        at = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return at


def located(error: UserError, places: Mapping[str, str]) -> UserError:
    """The same error with the place in the file of the field, or of the nearest section around it."""
    field = error.field or ""
    while field and field not in places:
        cut = max(field.rfind("."), field.rfind("["))
        field = field[:cut] if cut > 0 else ""
    place = places.get(field) if field else None
    if place is None or place in error.message:
        return error
    return type(error)(
        f"{error.message} ({place})", field=error.field, value=error.value, nearest=error.nearest, hint=error.hint
    )
