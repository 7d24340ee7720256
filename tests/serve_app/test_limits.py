"""What is too much is refused at once, and named."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from raydecode.config import ServeLimitsConfig
from serve_app.failures import ApiError
from serve_app.limits import parse, read

LIMITS = ServeLimitsConfig(max_tokens=1000)


def refused(body: bytes | dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), LIMITS)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 10**6}, "n"),
        ({"best_of": 10**30}, "best_of"),
        ({"max_tokens": 1001}, "max_tokens"),
        ({"decoding": {"max_tokens": 1001}}, "decoding.max_tokens"),
        ({"decoding": {"n": 10**6}}, "decoding.n"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"logit_bias": {str(i): 0 for i in range(2000)}}, "logit_bias"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"messages": [{}] * 3000}, "messages"),
        ({"response_format": {"type": "regex", "regex": "a" * (1 << 20)}}, "response_format"),
        ({"decoding": {"monitors": [{"name": "regex", "pattern": "(a|b)*" * 1000}]}}, "decoding"),
        ({"tools": [{"a": "b" * 4000}] * 20}, "tools"),
        ({"messages": [{"content": [[[[[[[[[[[[1]]]]]]]]]]]]}]}, "messages"),
        ({"response_format": {f"k{i}": {} for i in range(30000)}}, "response_format"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_too_much_is_named(body: dict[str, Any], field: str) -> None:
    assert refused(body).param == field


@pytest.mark.parametrize("depth", [40, 190, 10_000, 300_000])
@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_a_schema_as_deep_as_one_likes_ends_without_recursion(depth: int, opening: bytes) -> None:
    closing = (b"}" if opening[:1] == b"{" else b"]") * depth
    body = b'{"model": "m\\"{[", "response_format": ' + opening * depth + b"1" + closing + b', "n": 1}'
    assert refused(body).param == "response_format"


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"\xff", b'{"a": "\\ud800"}', b'{"a": 1} b', b"[" * 500])
def test_what_is_no_json_is_said(body: bytes) -> None:
    assert refused(body).code in ("invalid_json", "limit")


def test_a_long_prompt_of_ids_passes() -> None:
    ids = list(range(10_000))
    assert parse(json.dumps({"prompt": ids}).encode(), LIMITS) == {"prompt": ids}


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 10

    async def nobody() -> AsyncIterator[bytes]:
        raise AssertionError("was read")
        yield b""

    async def look() -> None:
        assert await read(pieces(3), "30", 30) == b"x" * 30
        for source, length in ((nobody(), "31"), (pieces(4), None), (pieces(4), "junk")):
            with pytest.raises(ApiError) as caught:
                await read(source, length, 30)
            assert caught.value.status == 413

    asyncio.run(look())
