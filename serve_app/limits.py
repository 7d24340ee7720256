"""What a body may be, looked at before anything is made of it: its bytes, its nesting, its long strings, its counts.

A body is read by a parser with a depth limit of its own (200), so ten thousand brackets end there and not in Python's
recursion limit. What follows is one pass over the parsed value, without recursion.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from raydecode.config import ServeLimitsConfig
from serve_app.failures import ApiError

STRUCTURES = ("response_format", "tools", "functions", "text", "decoding", "tool_choice", "function_call", "metadata")
"""Fields whose value is a structure, or may hold one: bounded by schema_depth, schema_bytes and regex_length."""

MESSAGES = 2048
"""Most turns of a chat: a template is run over them."""

DEEPEST = 12
"""Nesting of all other fields: messages hold parts, which may hold the log-probabilities of an earlier answer."""

COUNTS = ("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens")

_MARK = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[\[\]{}]', re.DOTALL)
"""A string, whether it is a key, or a bracket."""


async def read(pieces: AsyncIterable[bytes], length: str | None, most: int) -> bytes:
    """The body's bytes, at most `most`. One that says it is too long is not read. length: the header Content-Length."""
    if length is not None and length.isdigit() and int(length[:20]) > most:
        raise too_large(most)
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > most:
            raise too_large(most)
    return bytes(body)


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large")


def parse(body: bytes, limits: ServeLimitsConfig) -> Any:
    """The body as JSON, within the limits. Raises ApiError naming the field."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        said = str(error)
        if "recursion" in said:
            raise _too_deep(_deep_field(body), limits.schema_depth) from None
        raise ApiError(400, f"the body is no JSON: {said}", code="invalid_json") from None
    if isinstance(value, dict):
        check(value, limits)
    return value


def check(body: Mapping[str, Any], limits: ServeLimitsConfig) -> None:
    """Nesting and strings of every field, and the counts that cost something."""
    for field, value in body.items():
        if isinstance(value, dict | list):
            _walk(field, value, limits)
    decoding = body.get("decoding")
    for where, held in (("", body), ("decoding.", decoding if isinstance(decoding, dict) else {})):
        for name in COUNTS:
            most = limits.n if name in ("n", "best_of") else limits.max_tokens
            _count(where + name, held.get(name), most)
        _count(where + "logprobs", held.get("logprobs"), limits.logprobs)
        for stop in _listed(held.get("stop"), where + "stop", limits.stop):
            size = len(stop.encode("utf-8", "replace")) if isinstance(stop, str) else 0
            if size > limits.stop_bytes:
                raise _beyond(f"{where}stop", f"a string of {size:,} bytes", limits.stop_bytes)
    _count("top_logprobs", body.get("top_logprobs"), limits.logprobs)
    for field in ("messages", "input"):
        _listed(body.get(field), field, MESSAGES)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt[:1]):
        _listed(prompt, "prompt", limits.prompts)
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and len(bias) > limits.logit_bias:
        raise _beyond("logit_bias", f"{len(bias):,} entries", limits.logit_bias)


def _count(field: str, value: Any, most: int | None) -> None:
    if most is not None and isinstance(value, int) and value > most:
        raise _beyond(field, f"{value:,}" if value < 10**12 else "a number beyond 10^12", most)


def _listed(value: Any, field: str, most: int) -> list[Any]:
    """The items of a list, or the one text in place of it."""
    held = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if len(held) > most:
        raise _beyond(field, f"{len(held):,} of them", most)
    return held


def _walk(field: str, value: Any, limits: ServeLimitsConfig) -> None:
    """Depth and size of a field's value. The stack is ours."""
    structure = field in STRUCTURES
    deepest = limits.schema_depth if structure else DEEPEST
    size, stack = 0, [(value, 1)]
    while stack:
        at, depth = stack.pop()
        if depth > deepest:
            raise _too_deep(field, deepest)
        if structure:
            size += len(at)
        elif isinstance(at, list) and at and isinstance(at[0], int):
            at = [one for one in at if not isinstance(one, int)]  # ids
        for inner in _parts(at):
            if isinstance(inner, dict | list):
                stack.append((inner, depth + 1))
            elif structure and isinstance(inner, str):
                size += len(inner)
                if len(inner) > limits.regex_length:
                    raise _beyond(field, f"a string of {len(inner):,} characters", limits.regex_length)
        if size > limits.schema_bytes:
            raise _beyond(field, "more characters", limits.schema_bytes)


def _parts(value: Any) -> Iterator[Any]:
    """What a container holds, keys included."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    else:
        yield from value


def _beyond(field: str, what: str, most: int) -> ApiError:
    return ApiError(400, f"{field}: {what}; this server takes at most {most:,}", param=field, code="limit")


def _too_deep(field: str | None, most: int) -> ApiError:
    return ApiError(400, f"{field or 'the body'}: nested deeper than {most} levels", param=field, code="limit")


def _deep_field(body: bytes, limit: int = 190) -> str | None:
    """The top-level field in which the nesting passes the parser's limit."""
    depth, key = 0, None
    for mark in _MARK.finditer(body):
        text = mark.group()
        if mark.group(1):
            if depth == 1 and mark.group(2):
                key = mark.group(1)[1:-1][:100].decode("utf-8", "replace")
        elif text in b"[{":
            depth += 1
            if depth > limit:
                return key
        else:
            depth -= 1
    return None
