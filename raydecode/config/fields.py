"""The base of every section, the field types they share, and where in the file a complaint belongs.

Strict: `"64"` is not a number, `1` is not a flag; unknown keys are refused with the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError
from pydantic import WithJsonSchema as Schema
from pydantic_core import PydanticCustomError

from raydecode.complaints import complaint as worded
from raydecode.complaints import kind, shown
from raydecode.errors import UserError
from raydecode.request import Card


class Section(BaseModel):
    """A mapping of a job file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


def without_nulls(value: Any) -> Any:
    """`section:` with nothing behind it is a section left to its defaults."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def in_order(least: int, most: int, section: str) -> None:
    """Raises UserError for a `max` below its `min`."""
    if most < least:
        raise UserError(f"max {most} is below min {least}", field=f"{section}.max", value=most)


def _one_or_many(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise PydanticCustomError("strings_type", "needs text or a list")
    return (value,) if isinstance(value, str) else tuple(value)


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


def complaint(error: ValidationError, model: type[BaseModel], where: str = "") -> UserError:
    """pydantic's first finding as one of ours; the valid keys are those of the section it lies in."""

    def keys(loc: Sequence[int | str]) -> list[str]:
        section = _section(model, loc)
        return list(section.model_fields) if section else []

    return worded(error.errors(include_url=False), keys, where)


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
    head, newline, rest = error.message.partition("\n")  # the place belongs to the field, not to what is listed below
    colon = ":" if head.endswith(":") else ""
    message = f"{head.removesuffix(':')} ({place}){colon}{newline}{rest}"
    return type(error)(message, field=error.field, value=error.value, nearest=error.nearest, hint=error.hint)
