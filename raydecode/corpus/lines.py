"""Lines of a byte range, and what a line holds.

A line belongs to the range where it starts, so fixed ranges need no look at the file beforehand: the reader of
[start, stop) looks one byte back to see whether a line starts at `start`, and reads on past `stop` to finish its last
line. A row's span reaches to the next line, clipped to the range; blank lines and the tail of a line from an earlier
range are gaps without rows. Every partition of a file into ranges therefore gives the same rows (property test).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from raydecode.errors import RowError

CHUNK = 1 << 20
MAX_LINE = 256 << 20
MAX_DEPTH = 256  # of JSON
_BOM = b"\xef\xbb\xbf"

Line = tuple[int, int, bytes | RowError]  # offset, end of its span, text without its newline


class Source(Protocol):
    def seek(self, offset: int) -> int: ...
    def read(self, size: int) -> bytes: ...


def lines_in(file: Source, start: int, stop: int) -> Iterator[Line]:
    """The non-blank lines that start in [start, stop). `\\n` and `\\r\\n` end a line."""
    at = max(0, start - 1)
    file.seek(at)
    held: tuple[int, bytes | RowError] | None = None
    end = at
    for offset, after, text in _split(file, at, stop):
        end = after
        if offset < start:  # the tail of an earlier range's line, or the newline before `start`
            continue
        if offset == 0 and isinstance(text, bytes) and text.startswith(_BOM):
            text = text[len(_BOM) :]
        if isinstance(text, bytes) and not text.strip():
            continue
        if held is not None:
            yield held[0], offset, held[1]
        held = (offset, text)
    if held is not None:
        yield held[0], min(end, stop), held[1]


def _split(file: Source, base: int, stop: int) -> Iterator[Line]:
    """(offset, end, text) of every line from `base` on that starts before `stop`; a giant one comes as an error."""
    pending = bytearray()
    while base < stop:
        lost = 0  # bytes of a giant line that were let go
        cut = pending.find(b"\n")
        while cut < 0:
            if len(pending) + lost > MAX_LINE:
                lost += len(pending)
                pending.clear()
            chunk = file.read(CHUNK)
            if not chunk:
                break
            seen = len(pending)
            pending += chunk
            cut = pending.find(b"\n", seen)
        size = len(pending) if cut < 0 else cut + 1
        if size + lost == 0:
            return
        text: bytes | RowError = bytes(pending[:size]).rstrip(b"\r\n")
        if lost:
            text = RowError("read", "LineTooLong", f"{(size + lost) >> 20} MiB, the limit is {MAX_LINE >> 20} MiB")
        del pending[:size]
        yield base, base + size + lost, text
        base += size + lost


def parse_json(line: bytes) -> dict[str, Any]:
    """One JSON object. Raises RowError(stage="read")."""
    try:
        value = json.loads(decode(line))
    except RecursionError:
        raise RowError("read", "InvalidJSON", "nested too deeply") from None
    except ValueError as error:
        raise RowError("read", "InvalidJSON", f"{error}: {line[:80].decode('utf-8', 'replace')!r}") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise RowError("read", "InvalidJSON", f"nested more than {MAX_DEPTH} levels deep")
    if not isinstance(value, dict):
        raise RowError("read", "InvalidRow", f"a line must hold a JSON object, found {type(value).__name__}")
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Nested beyond `limit`? What is deeper could be read here and be too deep where the stack is higher."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def decode(line: bytes) -> str:
    """UTF-8, strictly. Raises RowError(stage="read")."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("read", "InvalidUTF8", f"byte {error.start} of the line is not UTF-8 ({error.reason})") from None


def parse_text(line: bytes) -> dict[str, Any]:
    """A line of plain text is the column `text`."""
    return {"text": decode(line)}


def parse_openai(line: bytes) -> dict[str, Any]:
    """One request of an OpenAI batch file as columns: custom_id, messages or prompt, model, decoding (JSON text)."""
    row = parse_json(line)
    body = row.get("body")
    if not isinstance(body, dict):
        raise RowError("read", "InvalidRow", "an OpenAI batch line needs an object `body`")
    out: dict[str, Any] = {name: row[name] for name in ("custom_id", "url") if name in row}
    out |= {name: body[name] for name in ("messages", "prompt", "model") if body.get(name) is not None}
    if "messages" not in out and not isinstance(out.get("prompt"), str):
        raise RowError("read", "InvalidRow", "an OpenAI batch line needs body.messages, or body.prompt as text")
    spec = openai_spec(body)
    if spec:
        out["decoding"] = json.dumps(spec)
    return out


_OPENAI_SAMPLERS = (
    ("presence_penalty", "presence_penalty", "value", 0),
    ("frequency_penalty", "frequency_penalty", "value", 0),
    ("repetition_penalty", "repetition_penalty", "value", 1),
    ("temperature", "temperature", "value", None),
    ("top_k", "top_k", "k", -1),
    ("top_p", "top_p", "p", 1),
    ("min_p", "min_p", "p", 0),
)
_OPENAI_SAME = ("seed", "n", "stop", "logit_bias")
_OPENAI_IGNORED = {
    "messages",
    "prompt",
    "model",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "service_tier",
}


def openai_spec(body: dict[str, Any]) -> dict[str, Any]:
    """The body's options as decoding overrides. Options without an equivalent are a row's error, not silence."""
    spec: dict[str, Any] = {name: body[name] for name in _OPENAI_SAME if body.get(name) is not None}
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None:
        spec["max_tokens"] = limit
    if body.get("logprobs"):
        spec["logprobs"] = body.get("top_logprobs", body["logprobs"] if body["logprobs"] is not True else 0)
    chain = [
        {"name": name, option: body[key]}
        for key, name, option, neutral in _OPENAI_SAMPLERS
        if body.get(key) is not None and body[key] != neutral
    ]
    if body.get("temperature") == 0:
        chain = [one for one in chain if one["name"].endswith("penalty")] + [{"name": "greedy"}]
    if chain:
        spec["sampler"] = chain
    match body.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            spec["monitors"] = [{"name": "json_schema", "schema": {"type": "object"}}]
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            spec["monitors"] = [{"name": "json_schema", "schema": schema}]
        case other:
            raise RowError("read", "Unsupported", f"body.response_format: {str(other)[:200]}")
    known = {key for key, *_ in _OPENAI_SAMPLERS} | set(_OPENAI_SAME) | _OPENAI_IGNORED
    known |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format"}
    foreign = sorted(key for key, value in body.items() if key not in known and value not in (None, False, [], {}))
    if foreign:
        raise RowError("read", "Unsupported", f"options without an equivalent here: {', '.join(foreign)}")
    return spec


PARSERS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "jsonl": parse_json,
    "openai": parse_openai,
    "text": parse_text,
}
