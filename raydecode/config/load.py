"""Job and server files: YAML with line numbers, dotted overrides, one validation.

`raydecode generate job.yaml decoding.sampler=greedy decoding.monitors.0.weight=2` changes values before anything is
checked, so an override gets the same messages as the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from raydecode.complaints import dotted, kind
from raydecode.config.fields import complaint, located
from raydecode.config.job import SHORT_FORMS, JobConfig
from raydecode.config.serve import ServeConfig
from raydecode.errors import UserError, nearest
from raydecode.request import FIELDS

COMMAND_LINE = "the command line"
IMPORT_PATH = "serve_app:build"
"""What Ray Serve's config file calls our application."""

Config = TypeVar("Config", JobConfig, ServeConfig)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Read, override, validate. Raises UserError with field, value, nearest name and line."""
    return parse_job(_read(path, "job", "raydecode init writes one"), overrides, name=Path(path).name)


def parse_job(text: str, overrides: Sequence[str] = (), name: str = "job.yaml") -> JobConfig:
    """A job from YAML text; `name` is what messages call the file."""
    data, places = read_yaml(text, name)
    if not isinstance(data, dict):
        raise UserError(
            f"a job file is a mapping, got {kind(data)}", field=name, hint="raydecode init writes a commented one"
        )
    return _checked(JobConfig, data, places, overrides)


def load_serve(path: str | Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """The same for a server: our sections, or Ray Serve's config file with them as an application's `args`."""
    return parse_serve(_read(path, "server", "configs/serve.yaml is one"), overrides, name=Path(path).name)


def parse_serve(text: str, overrides: Sequence[str] = (), name: str = "serve.yaml") -> ServeConfig:
    """A server's configuration from YAML text."""
    data, places = read_yaml(text, name)
    if not isinstance(data, dict):
        raise UserError(f"a server file is a mapping, got {kind(data)}", field=name, hint="configs/serve.yaml is one")
    if "applications" in data:
        data, places = _application(data, places)
    return _checked(ServeConfig, data, places, overrides)


def check_serve(data: Mapping[str, Any]) -> ServeConfig:
    """A server's configuration from a mapping: the `args` that Ray Serve hands to the application."""
    return _checked(ServeConfig, dict(data), {}, ())


def _application(data: Mapping[str, Any], places: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """Our sections out of Ray Serve's file, with its address, and where they stand."""
    listed = data["applications"]
    ours = [i for i, one in enumerate(listed if isinstance(listed, list) else []) if _is_ours(one)]
    if len(ours) != 1:
        raise located(
            UserError(
                f"needs one application whose import_path is {IMPORT_PATH}, got {len(ours)}", field="applications",
                hint="configs/serve.yaml is one",
            ),
            places,
        )  # fmt: skip
    at = f"applications[{ours[0]}].args"
    inner = {field.removeprefix(f"{at}."): place for field, place in places.items() if field.startswith(f"{at}.")}
    options, args = data.get("http_options") or {}, dict(listed[ours[0]].get("args") or {})
    named = {"host": "host", "port": "port", "ssl_certfile": "tls_certfile", "ssl_keyfile": "tls_keyfile"}
    taken = {own: options[theirs] for theirs, own in named.items() if options.get(theirs) is not None}
    args["http"] = {**(args.get("http") or {}), **taken}
    outer = {f"http.{own}": places[f"http_options.{theirs}"] for theirs, own in named.items() if own in taken}
    return args, inner | outer


def _is_ours(application: Any) -> bool:
    return isinstance(application, dict) and application.get("import_path") == IMPORT_PATH


def _read(path: str | Path, what: str, hint: str) -> str:
    file = Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = {p.stem: p.name for p in file.parent.glob("*.y*ml")} if file.parent.is_dir() else {}
        stem = nearest(file.stem, beside)  # the endings are alike in any case
        raise UserError(
            f"no such {what} file", field=str(path), nearest=beside[stem] if stem else None, hint=hint
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", field=str(path)) from None


def _checked(kind: type[Config], data: Any, places: Mapping[str, str], overrides: Sequence[str]) -> Config:
    """The overrides put in, everything validated."""
    for override in overrides:
        data = _merge(data, _override(override))
        places = _replaced(places, override.split("=")[0])
    try:
        config = kind.model_validate(data)
    except ValidationError as error:
        raise located(complaint(error, kind), places) from None
    except UserError as error:
        raise located(error, places) from None
    config._lines = places
    return config


def read_yaml(text: str, name: str) -> tuple[Any, dict[str, str]]:
    """The data and where each field stands: {"decoding.sampler[0].p": "job.yaml, line 9"}."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
        return data, {field: f"{name}, line {line}" for field, line in _lines(node, "", name)} if node else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"not valid YAML: {said}", field=f"{name}{line}", hint=_yaml_hint(text, mark)) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", field=name) from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: `1e-3` is a number; `on`, `yes` and `2024-01-01` stay text."""


_SURPRISES = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _SURPRISES]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF|nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def _lines(node: yaml.Node, at: str, name: str, inside: frozenset[int] = frozenset()) -> Iterator[tuple[str, int]]:
    """(dotted field, line) of every key and item; refuses a key written twice and an alias inside itself."""
    if id(node) in inside:
        raise UserError("this alias contains itself", field=f"{name}, line {node.start_mark.line + 1}")
    inside |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and key.value != "<<":
                raise UserError(
                    f"written twice ({name}, lines {seen[key.value]} and {line})", field=dotted(at, [str(key.value)])
                )
            seen[key.value] = line
            here = dotted(at, [str(key.value)])
            yield here, line
            yield from _lines(value, here, name, inside)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            here = dotted(at, [i])
            yield here, item.start_mark.line + 1
            yield from _lines(item, here, name, inside)


def _yaml_hint(text: str, mark: yaml.Mark | None) -> str | None:
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "{{" in line and not any(quote in line.split("{{")[0] for quote in "\"'|>"):
        return f'a template needs quotes: {line.split(":")[0].strip()}: "{{{{ question }}}}"'
    if "\t" in line:
        return "indent with spaces, not tabs"
    return None


def _override(text: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if "=" not in text or text.startswith("="):
        raise UserError("an override is key=value", field=text, hint="decoding.sampler=greedy")
    try:
        change = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        key = text.split("=")[0]
        raise UserError(
            f"not a value: {str(error).splitlines()[0]}",
            field=key,
            value=text.split("=", 1)[1],
            hint=f"""quote it for YAML and for the shell: '{key}="..."'""",
        ) from None
    assert isinstance(change, dict)
    return {str(key): value for key, value in change.items()}


def _merge(base: Any, change: Any, at: tuple[str, ...] = ()) -> Any:
    """`change` over `base`: mappings by key, lists by index, anything else replaced."""
    here = at[2:] if at[:1] == ("models",) else at  # a server's models are sections like a job's
    if here != at and not here and isinstance(base, str):
        base = {"model": base}
    if here == ("engine",) and isinstance(base, dict) and isinstance(change, str):
        change = {"name": change}  # another engine, the same dtype and slots
    if not isinstance(change, dict):
        return change
    if isinstance(base, list) and change and all(str(key).isdigit() for key in change):
        out = list(base)
        for key, value in change.items():
            if int(key) >= len(out):
                raise UserError(
                    f"the list has {len(out)} items, counted from 0", field=".".join([*at, str(key)]), value=value
                )
            out[int(key)] = _merge(out[int(key)], value, (*at, str(key)))
        return out
    if isinstance(base, str) and (_is_card(here) or (len(here) == 1 and here[0] in SHORT_FORMS)):
        base = {SHORT_FORMS.get(here[0], "name"): base}  # the short form, so that an option can be added
    if not isinstance(base, dict) or (_is_card(here) and change.get("name", base.get("name")) != base.get("name")):
        return change  # another method: the old one's options are not its own
    return base | {key: _merge(base.get(key), value, (*at, str(key))) for key, value in change.items()}


def _is_card(at: tuple[str, ...]) -> bool:
    return len(at) in (2, 3) and at[0] == "decoding" and at[1] in FIELDS.values()


def _replaced(places: Mapping[str, str], key: str) -> dict[str, str]:
    """The places after an override: what lay under its key is gone, the sections around it stay where they are."""
    field = dotted("", [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", key) if part])
    kept = {at: place for at, place in places.items() if at != field and not at.startswith((f"{field}.", f"{field}["))}
    parts = re.findall(r"[^.\[]+|\[\d+\]", field)
    around = [dotted("", [int(p[1:-1]) if p[0] == "[" else p for p in parts[:n]]) for n in range(1, len(parts))]
    return dict.fromkeys(around, COMMAND_LINE) | kept | {field: COMMAND_LINE}
