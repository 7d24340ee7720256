"""From a row's columns to its prompt: Jinja in a sandbox, or a messages column.

    prompt: {template: "{{ question }}"}                            text, given to the model as it is
    prompt: {template: "{{ question }}", chat: true, system: ...}   a user message, through the model's chat template
    prompt: {messages: messages}                                    a column: list of {role, content}, or JSON text
    prompt: {file: prompts/qa.yaml}                                 any of these keys from a YAML file

Columns are values as the file had them; undefined names are errors, never empty text. Rendering is bounded in ranges
(sandbox), size (MAX_CHARS) and time (MAX_S, looked at between the pieces a template yields and at every turn of
its loops): a template that loops costs its row, not the job. Every fault is RowError(stage="template").
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor
import yaml

from raydecode.errors import RowError, UserError, nearest

MAX_CHARS = 8 << 20
MAX_S = 2.0
_KEYS = ("template", "messages", "file", "system", "chat")
_ROLES = ("system", "developer", "user", "assistant", "tool")

_TURN, _JOIN = "_raydecode_turn", "_raydecode_join"

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either `text`, complete, or `messages` for the model's chat template; never both."""

    text: str | None = None
    messages: Messages | None = None


class Renderer:
    """The prompt section of a job, checked against the corpus's columns.

    prompt:  keys template | messages | file, with chat and system
    columns: names of the input columns; None = not known yet, `needs` says what must be there
    Raises UserError for unknown keys, broken templates and missing columns (nearest shown).
    """

    def __init__(
        self,
        prompt: Mapping[str, object],
        columns: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        section = with_file(dict(prompt))
        self._clock = clock
        self._column = section.get("messages")
        self._system = section.get("system")
        self._source = template = section.get("template")
        if (template is None) == (self._column is None):
            raise UserError(
                "give either a template or a messages column",
                field="prompt",
                value=sorted(section),
                hint='prompt: {template: "{{ question }}"}   or   prompt: {messages: <column>}',
            )
        self._chat = bool(section.get("chat", self._system is not None))
        needs: set[str] = {str(self._column)} if self._column is not None else set()
        self._environment = _Sandbox(
            undefined=jinja2.StrictUndefined, finalize=_present, keep_trailing_newline=True, autoescape=False
        )
        self._template, used = self._compile("template", template)
        self._system_template, used_system = self._compile("system", self._system)
        self.needs: tuple[str, ...] = tuple(sorted(needs | used | used_system))
        if columns is not None:
            self._check(columns)

    def render(self, row: Mapping[str, Any]) -> Prompt:
        """The row's prompt. Raises RowError(stage="template")."""
        if self._template is None:
            messages = _messages(row.get(str(self._column)), str(self._column))
            if self._system_template is not None and messages[0]["role"] != "system":
                messages = ({"role": "system", "content": self._run(self._system_template, row)}, *messages)
            return Prompt(messages=messages)
        text = self._run(self._template, row)
        if not self._chat:
            return Prompt(text=text)
        system = (
            []
            if self._system_template is None
            else [{"role": "system", "content": self._run(self._system_template, row)}]
        )
        return Prompt(messages=(*system, {"role": "user", "content": text}))

    def _run(self, template: jinja2.Template, row: Mapping[str, Any]) -> str:
        deadline = self._clock() + MAX_S
        self._environment.watch(lambda: _in_time(self._clock, deadline))
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(dict(row)):
                size += len(piece)
                if size > MAX_CHARS:
                    raise RowError("template", "TooLarge", f"the prompt grows beyond {MAX_CHARS:,} characters")
                _in_time(self._clock, deadline)
                pieces.append(piece)
        except RowError:
            raise
        except jinja2.UndefinedError as error:
            raise RowError("template", "UndefinedError", _explain(str(error), row)) from None
        except (RecursionError, MemoryError) as error:
            raise RowError("template", type(error).__name__, "the template needs too much depth or memory") from None
        except Exception as error:  # whatever an expression may raise: a filter's TypeError, a sandbox refusal
            raise RowError("template", type(error).__name__, str(error)[:500]) from None
        return _storable("".join(pieces))

    def _compile(self, field: str, source: object) -> tuple[jinja2.Template | None, set[str]]:
        if source is None:
            return None, set()
        if not isinstance(source, str):
            raise UserError(f"must be text, found {type(source).__name__}", field=f"prompt.{field}", value=source)
        try:
            tree = self._environment.parse(source)
            used = jinja2.meta.find_undeclared_variables(tree)
            return self._environment.from_string(source), used - set(self._environment.globals)
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(
                f"the template does not parse{f' (line {line})' if line else ''}: {error}",
                field=f"prompt.{field}",
                value=source[:200],
                hint="syntax: https://jinja.palletsprojects.com/templates",
            ) from None

    def _check(self, columns: Sequence[str]) -> None:
        for name in self.needs:
            if name not in columns and not self._optional(name):
                raise UserError(
                    f"the input has no column {name!r}",
                    field="prompt.messages" if name == self._column else "prompt.template",
                    value=name,
                    nearest=nearest(name, columns),
                    hint="columns: " + ", ".join(columns),
                )

    def _optional(self, name: str) -> bool:
        """`{% if x is defined %}` or `x | default(...)` somewhere: the template copes without the column."""
        sources = [s for s in (self._source, self._system) if isinstance(s, str)]
        for tree in map(self._environment.parse, sources):
            for test in tree.find_all(jinja2.nodes.Test):
                if test.name in ("defined", "undefined") and getattr(test.node, "name", None) == name:
                    return True
            for call in tree.find_all(jinja2.nodes.Filter):
                if call.name in ("default", "d") and getattr(call.node, "name", None) == name:
                    return True
        return False


_PADDING = ("center", "indent")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox that looks at the clock in every turn of a loop, at every call, attribute and operator, so that a
    template that yields nothing is bounded, too; and that bounds what `~`, `+`, `*` and `**` may build."""

    intercepted_binops = frozenset({"**", "*", "+", "%", "//", "-", "/"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._look: Callable[[], None] = lambda: None
        self.globals = {
            "range": jinja2.sandbox.safe_range,
            "dict": dict,
            "namespace": jinja2.utils.Namespace,
            _TURN: lambda: None,  # `call` looks at the clock
            _JOIN: _joined,
        }
        for name in _PADDING:
            self.filters[name] = _narrow(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            turn = jinja2.nodes.Call(jinja2.nodes.Name(_TURN, "load"), [], [], None, None)
            loop.body.insert(0, jinja2.nodes.ExprStmt(turn))
        _Joins().visit(tree)
        tree.set_environment(self)
        return tree

    def watch(self, look: Callable[[], None]) -> None:
        self._look = look

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._look()
        if operator == "**" and isinstance(left, int | float) and isinstance(right, int | float) and abs(right) > 64:
            raise RowError("template", "TooLarge", "exponents are limited to 64")
        if operator == "*" and _repeated(left, right) > MAX_CHARS:
            raise RowError("template", "TooLarge", f"a repetition grows beyond {MAX_CHARS:,} elements")
        if operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            _joined(left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        self._look()
        return super().call(context, obj, *arguments, **named)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._look()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._look()
        return super().getitem(obj, argument)


class _Joins(jinja2.visitor.NodeTransformer):
    """`a ~ b` becomes a call that bounds its size: a text that doubles itself would outgrow memory within the time."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return jinja2.nodes.Call(
            jinja2.nodes.Name(_JOIN, "load", lineno=node.lineno), node.nodes, [], None, None, lineno=node.lineno
        )


def _present(value: Any) -> Any:
    """What `{{ }}` is about to print. A null would read "None" in the prompt, and the model would answer to that."""
    if value is None:
        raise RowError("template", "NullValue", "a value that the template prints is null; `{{ x or '' }}` prints none")
    return value


def _storable(text: str) -> str:
    """Half of a surrogate pair (`\\ud800` in JSON) is no character: no tokenizer takes it, no UTF-8 holds it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("template", "InvalidUnicode", f"a lone surrogate at character {error.start}") from None
    return text


def _narrow(pad: Callable[..., str]) -> Callable[..., str]:
    """A filter that pads to a width its caller chooses, with the width bounded before the text is built."""

    @functools.wraps(pad)
    def bounded(value: Any, *arguments: Any, **named: Any) -> str:
        if any(isinstance(one, int) and one > MAX_CHARS for one in (*arguments, *named.values())):
            raise RowError("template", "TooLarge", f"a text grows beyond {MAX_CHARS:,} characters")
        return pad(value, *arguments, **named)

    return bounded


def _joined(*parts: Any) -> str:
    texts = [part if isinstance(part, str | list) else str(part) for part in parts]
    if sum(map(len, texts)) > MAX_CHARS:
        raise RowError("template", "TooLarge", f"a text grows beyond {MAX_CHARS:,} characters")
    return "".join(map(str, texts))


def _repeated(left: Any, right: Any) -> int:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            return len(many) * max(times, 0)
    return 0


def _in_time(clock: Callable[[], float], deadline: float) -> None:
    if clock() > deadline:
        raise RowError("template", "Timeout", f"rendering took more than {MAX_S} s")


def _messages(value: Any, column: str) -> Messages:
    """A messages cell: a list of {role, content, ...}, or its JSON text. Nulls of Arrow structs are dropped."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError("template", "InvalidMessages", f"column {column} is no JSON: {error}") from None
    if isinstance(value, Mapping):
        value = value.get("messages", [value])
    if not isinstance(value, Iterable) or not (found := list(value)):
        raise RowError(
            "template", "InvalidMessages", f"column {column} must hold a list of messages, found {str(value)[:80]!r}"
        )
    for i, one in enumerate(found):
        if not isinstance(one, Mapping) or one.get("role") not in _ROLES:
            what = str(one)[:80]
            raise RowError(
                "template", "InvalidMessages", f"{column}[{i}] needs a role of {', '.join(_ROLES)}; found {what!r}"
            )
        if one.get("content") is None and not one.get("tool_calls"):
            raise RowError("template", "InvalidMessages", f"{column}[{i}] has no content")
    messages = tuple(_without_nulls(one) for one in found)
    _storable(json.dumps(messages, ensure_ascii=False, default=str))
    return messages


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value


def _explain(message: str, row: Mapping[str, Any]) -> str:
    name = message.split("'")[1] if message.count("'") >= 2 else ""
    close = nearest(name, row) if name else None
    return f"{message}; nearest column: {close}" if close else f"{message}; columns: {', '.join(row)}"


def with_file(section: dict[str, Any]) -> dict[str, Any]:
    for key in section:
        if key not in _KEYS:
            raise UserError(
                f"no option {key!r}",
                field=f"prompt.{key}",
                value=section[key],
                nearest=nearest(key, _KEYS),
                hint="all: " + ", ".join(_KEYS),
            )
    section = {key: value for key, value in section.items() if value is not None}
    path = section.pop("file", None)
    if path is None:
        return section
    try:
        with fsspec.open(str(path), "r", encoding="utf-8") as file:
            loaded = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the prompt file: {error}", field="prompt.file", value=path) from error
    if isinstance(loaded, str):
        loaded = {"template": loaded}
    if isinstance(loaded, list):
        raise UserError("a prompt file holds a mapping or a text, found a list", field="prompt.file", value=path)
    if not isinstance(loaded, dict):
        raise UserError("the prompt file is empty", field="prompt.file", value=path, hint='template: "{{ question }}"')
    loaded = {"template": loaded.pop("prompt"), **loaded} if "prompt" in loaded and "template" not in loaded else loaded
    if "file" in loaded:
        raise UserError("a prompt file cannot name another", field="prompt.file", value=path)
    return with_file(loaded | section)
