"""name -> card -> factory. A room's files are scanned once; third parties add theirs by entry point.

    @register("samplers", paper="arXiv:1904.09751", vllm=Vllm(stage=50, params={"p": "top_p"}))
    class TopP:
        \"\"\"Nucleus sampling.\"\"\"
        class Options(registry.Options):
            p: float = Field(gt=0, le=1, description="kept mass")

The registered name is the class name in snake case unless `name` is given. Rooms are import-light: scanning one imports
its files and nothing heavy. A third party's distribution names a module per entry point:

    [project.entry-points."raydecode.samplers"]
    my_method = "my_package.my_method"

A plug-in that fails to import is kept with its error (`broken`): `doctor` shows it, and only who asks for it fails.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raydecode.complaints import complaint
from raydecode.contracts import Effects, Needs
from raydecode.errors import UserError, nearest
from raydecode.request import Card

ROOMS = ("samplers", "monitors", "drafters", "searches", "interventions", "rewards", "objectives")


class Options(BaseModel):
    """Base of a method's options: strict (`"0.9"` is no number, `true` no count), frozen, unknown names refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Vllm:
    """How vLLM does the same itself: our option -> its SamplingParams field.

    stage: vLLM applies its processors in one fixed order; a chain maps only if its stages rise.
    fixed: fields to set whatever the options.
    """

    stage: int
    params: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method: what lists, docs, schemas and engines need to know before one is made."""

    room: str
    name: str
    factory: Callable[[], Any]
    options: type[Options]
    summary: str
    paper: str
    effects: Effects
    needs: Needs
    engines: tuple[str, ...]
    loads: bool
    vllm: Vllm | None
    origin: str

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the options."""
        return self.options.model_json_schema()

    def parse(self, card: Card, where: str) -> Card:
        """The card with its options validated and defaults filled in; errors name `where`."""
        try:
            text = json.dumps(dict(card.options))  # as JSON, a list may be a tuple and a name an enum's
        except (TypeError, ValueError) as error:
            raise UserError(f"options are JSON values: {error}", field=where, value=card.options) from None
        try:
            parsed = self.options.model_validate_json(text)
        except ValidationError as error:
            known = list(self.options.model_fields)
            raise complaint(error.errors(), lambda loc: [] if loc else known, where, self.name) from None
        except UserError as error:  # of a card among the options
            raise error.inside(where) from None
        return Card(card.name, parsed.model_dump())

    def __str__(self) -> str:
        return f"{self.room}/{self.name}"


_methods: dict[str, dict[str, Method]] = {room: {} for room in ROOMS}
_broken: dict[str, dict[str, str]] = {room: {} for room in ROOMS}


def register(
    room: str,
    *,
    name: str | None = None,
    paper: str = "",
    exact: bool = False,
    engines: tuple[str, ...] | None = None,
    loads: bool = False,
    vllm: Vllm | None = None,
) -> Callable[[type], type]:
    """Class decorator. engines: who can host it (None: all that give what it needs); loads: it needs weights or a
    service of its own."""
    if room not in ROOMS:
        raise UserError(f"no room '{room}'", field="room", value=room, nearest=nearest(room, ROOMS))

    def add(cls: type) -> type:
        own = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        known = _methods[room].get(own)
        if known and known.origin != cls.__module__:
            raise UserError(
                f"{room}/{own} is registered by {known.origin} already", field="name", value=own,
                hint=f"rename the method in {cls.__module__}",
            )  # fmt: skip
        document = (cls.__doc__ or importlib.import_module(cls.__module__).__doc__ or own).strip()
        _methods[room][own] = Method(
            room=room,
            name=own,
            factory=cls,
            options=getattr(cls, "Options", Options),
            summary=document.splitlines()[0].rstrip("."),
            paper=paper,
            effects=getattr(cls, "effects", Effects(exact=exact)),
            needs=getattr(cls, "needs", Needs()),
            engines=_engines(room, cls, vllm) if engines is None else engines + (("vllm",) if vllm else ()),
            loads=loads,
            vllm=vllm,
            origin=cls.__module__,
        )
        return cls

    return add


def _engines(room: str, cls: type, vllm: Vllm | None) -> tuple[str, ...]:
    """vLLM hosts a sampler that it has itself, and by our classes in it any sampler that reads logits and ids only and
    any drafter that reads ids only."""
    given = {"samplers": Needs(own_logp=True, history=True), "drafters": Needs()}.get(room)
    inside = given and getattr(cls, "needs", Needs()) | given == given and not hasattr(cls, "needs_of")
    return ("torch", "toy", *(("vllm",) if vllm or inside else ()))


@contextlib.contextmanager
def guests() -> Iterator[None]:
    """What is registered inside is forgotten at the end: for tests, and to try a method out before it has a file."""
    for room in ROOMS:
        _scan(room)
    before = {room: dict(known) for room, known in _methods.items()}
    try:
        yield
    finally:
        _methods.update(before)


def methods(room: str) -> Mapping[str, Method]:
    """All methods of a room, by name."""
    _scan(room)
    return dict(sorted(_methods[room].items()))


def cards(room: str) -> list[Method]:
    """All methods of a room, for parametrised tests."""
    return list(methods(room).values())


def broken(room: str) -> Mapping[str, str]:
    """Entry points of a room that failed to load, and why."""
    _scan(room)
    return dict(_broken[room])


def get(room: str, name: str, where: str = "") -> Method:
    """The method, or an error with the nearest name."""
    known = methods(room)
    if name in known:
        return known[name]
    if name in _broken[room]:
        raise UserError(
            f"{room}/{name} failed to load: {_broken[room][name]}", field=where, value=name, hint="raydecode doctor"
        )
    kind = {"searches": "search"}.get(room, room.removesuffix("s"))
    raise UserError(
        f"no {kind} '{name}'",
        field=where,
        value=name,
        nearest=nearest(name, known),
        hint=f"all: raydecode methods {room}",
    )


def chooses(card: Card | None) -> bool:
    """The drafter stands for a choice among others (`contracts.Drafter.among`)."""
    known = methods("drafters")
    return card is not None and card.name in known and hasattr(known[card.name].factory, "among")


def among(card: Card | None) -> tuple[Card, ...]:
    """The drafters that one which chooses names; none for others, and for one that leaves it to the engine."""
    if card is None or not chooses(card):
        return ()
    return tuple(get("drafters", card.name).factory.among(card.options))  # type: ignore[attr-defined]


def check_chain(chain: Sequence[Card], where: str) -> None:
    """Raise UserError for samplers that contradict each other: one given twice, or one that another makes idle.

    A sampler that `settles` leaves one token: none behind it has a choice, and one before it that `keeps_best` never
    shows (`contracts.Sampler`).
    """
    made = [get("samplers", card.name, f"{where}[{i}]").factory for i, card in enumerate(chain)]
    settled = next((i for i, sampler in enumerate(made) if getattr(sampler, "settles", False)), None)
    for i, card in enumerate(chain):
        field, earlier = f"{where}[{i}]", [other.name for other in chain[:i]]
        if card.name in earlier:
            raise UserError(
                f"'{card.name}' is in the chain twice, first at [{earlier.index(card.name)}]", field=field,
                value=card.name, hint="keep the one that is meant",
            )  # fmt: skip
        if settled is not None and (i > settled or (i < settled and getattr(made[i], "keeps_best", False))):
            raise UserError(
                f"'{card.name}' and '{chain[settled].name}' contradict each other: {chain[settled].name} leaves one "
                f"token, so {card.name} would change nothing", field=field, value=card.name, hint="keep one of them",
            )  # fmt: skip


@functools.cache
def _scan(room: str) -> None:
    if room not in ROOMS:
        raise UserError(
            f"no room '{room}'",
            field="room",
            value=room,
            nearest=nearest(room, ROOMS),
            hint=f"rooms: {', '.join(ROOMS)}",
        )
    try:
        package = importlib.import_module(f"raydecode.{room}")
    except ModuleNotFoundError as error:
        if error.name != f"raydecode.{room}":
            raise
    else:
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for point in importlib.metadata.entry_points(group=f"raydecode.{room}"):
        try:
            point.load()
        except Exception as error:  # a third party's code: whatever it raises must not stop the others
            _broken[room][point.name] = f"{type(error).__name__}: {error}"
