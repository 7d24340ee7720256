"""Write what the documentation takes from the code: the README's table of methods, the reference of job files, and
which sampler goes with which drafter where.

python docs/generate.py            write
python docs/generate.py --check    exit 1 when a file is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def methods_table() -> str:
    """The table of `raydecode methods --markdown`, without methods of third parties."""
    from raydecode.cli.methods import listed, table

    return table([row for row in listed() if row["origin"].startswith("raydecode.")])


def sections() -> str:
    """One table per section of a job file, from the models themselves."""
    from raydecode.config import JobConfig

    return "\n".join(
        _section(f"## {name}", _model(field.annotation), field.is_required())
        for name, field in JobConfig.model_fields.items()
    )


def server() -> str:
    """The same of a server file. What a job file has, too, is described there."""
    from raydecode.config import ServeConfig
    from raydecode.config.fields import Section

    out = []
    for name, field in ServeConfig.model_fields.items():
        model = _model(field.annotation)
        out.append(_section(f"### {name}", model, field.is_required()))
        for key, inner in model.model_fields.items():
            own = _model(inner.annotation)
            if isinstance(own, type) and issubclass(own, Section) and own.__module__ == ServeConfig.__module__:
                out.append(_section(f"### {name}: {key}", own, inner.is_required()))
    return "\n".join(out)


def _section(title: str, model: Any, required: bool) -> str:
    """A section of a file as a table of its keys."""
    needed = " Required." if required else ""
    out = [f"{title}\n\n{_one_line(model.__doc__)}{needed}\n"]
    out.append("| key | value | default | meaning |\n|---|---|---|---|")
    schema = model.model_json_schema()
    for key, part in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else f"`{_text(_default(model, key))}`"
        out.append(f"| `{key}` | {_type(part)} | {default} | {_meaning(model, key, part)} |")
    return "\n".join([*out, ""])


def _meaning(model: Any, key: str, part: dict[str, Any]) -> str:
    """The text under the field; of a section in a section, what the section says of itself."""
    inner = _model(model.model_fields[key].annotation)
    return _one_line(part.get("description") or (inner.__doc__ if hasattr(inner, "model_fields") else None))


def columns() -> str:
    """What `output.columns` may name."""
    from raydecode.columns import CHOICES

    return "\n".join(
        ["| column | meaning |", "|---|---|", *(f"| `{k}` | {one.meaning} |" for k, one in CHOICES.items())]
    )


MARKS = {"torch": "t", "toy": "y", "vllm": "v"}


def pairs() -> str:
    """Samplers and monitors against drafters: who hosts both."""
    from raydecode import registry

    rooms = {room: _ours(registry.cards(room)) for room in ("samplers", "monitors", "drafters")}
    lines = ["| | " + " | ".join(["none", *(one.name for one in rooms["drafters"])]) + " |"]
    lines.append("|---" * (len(rooms["drafters"]) + 2) + "|")
    for watched in (*rooms["samplers"], *rooms["monitors"]):
        found = [hosts(watched, drafter) for drafter in (None, *rooms["drafters"])]
        lines.append(
            f"| `{watched.name}` | " + " | ".join("".join(map(MARKS.__getitem__, one)) or "-" for one in found) + " |"
        )
    return "\n".join(lines)


def hosts(watched: Any, drafter: Any) -> list[str]:
    """The engines that refuse neither the sampler or monitor, nor the drafter, nor the two together."""
    from raydecode.conformance.options import option_sets
    from raydecode.engine import cards, vllm
    from raydecode.request import Card, DecodingSpec

    card = Card(watched.name, option_sets(watched)[0])
    chosen = Card(drafter.name, option_sets(drafter)[0]) if drafter else None
    fields = {"sampler": (card,)} if watched.room == "samplers" else {"monitors": (card,)}
    spec = DecodingSpec(drafter=chosen, **fields)
    refused = {"torch": cards.refuse("torch", spec), "toy": cards.refuse("toy", spec), "vllm": vllm.refuse(spec)}
    return [name for name in MARKS if not refused[name]]


def _ours(methods: list[Any]) -> list[Any]:
    return [one for one in methods if one.origin.startswith("raydecode.")]


PARTS = {"methods": methods_table, "sections": sections, "server": server, "columns": columns, "pairs": pairs}
FILES = ("README.md", "docs/configuration.md", "docs/pairs.md", "docs/serving.md")


def filled(text: str) -> str:
    """The text with everything between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start, 1)
            text = f"{before}{start}\n{make().strip()}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def main() -> int:
    stale = []
    for name in FILES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(("out of date: " if "--check" in sys.argv else "written: ") + ", ".join(stale))
    return 1 if stale and "--check" in sys.argv else 0


def _model(annotation: Any) -> Any:
    return next((one for one in getattr(annotation, "__args__", ()) if hasattr(one, "model_fields")), annotation)


def _default(model: Any, key: str) -> Any:
    field = model.model_fields[key]
    return field.default_factory() if field.default_factory else field.default


def _type(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{one}`" for one in part["enum"])
    if "$ref" in part:
        return "mapping"
    if part.get("title") == "name or card":
        return "name or card"
    if "anyOf" in part:
        kinds = [_type(one) for one in part["anyOf"] if one.get("type") != "null"]
        null = ", null" if len(kinds) < len(part["anyOf"]) else ""
        return " or ".join(dict.fromkeys(kinds)) + null
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "object": "mapping",
    }
    if part.get("type") == "array":
        return f"list of {_type(part.get('items') or {})}".replace("list of any", "list")
    limits = [
        f"{sign} {part[key]:g}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
        if key in part
    ]
    return " ".join([names.get(part.get("type", "any"), part.get("type", "any")), ", ".join(limits)]).strip()


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if value == "":
        return '""'
    if value == {} or hasattr(type(value), "model_fields"):
        return "{}"
    if hasattr(value, "to_json"):
        return str(value.name)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
