"""Log lines: one JSON object each, a request's id in every one that belongs to a request.

    {"time": "2026-11-29T12:00:00.123Z", "level": "info", "message": "request", "request_id": "req_...",
     "method": "POST", "route": "/v1/completions", "status": 200, "seconds": 0.41, "model": "smollm2", "key": "me",
     "prompt_tokens": 12, "output_tokens": 64}

Prompts and texts appear only with `logging.prompts: true`, in lines of their own ("stream").
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from raydecode.request import Messages, Prompt, Text
from serve_app.observe.inquiry import Inquiry, current
from serve_app.observe.watch import Seen

LOGGER = "raydecode.serve"
_FIELDS = "raydecode"
"""The attribute of a log record that holds its fields."""
_QUIET = ("/metrics", "/healthz", "/readyz")
"""Routes that are asked every few seconds: logged at level debug."""

log = logging.getLogger(LOGGER)


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        inquiry = current.get()
        if inquiry is not None:
            line["request_id"] = inquiry.id
        line |= getattr(record, _FIELDS, {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, _FIELDS, {}).items())
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = f"{at} {record.levelname.lower()} {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info and record.exc_info[0] else text


def configure(level: str = "info", format: str = "json", stream: Any = None) -> None:
    """Send this server's log to `stream` (standard error), and nowhere else. Safe to call twice."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else PlainLines())
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False


class Lines:
    """Teller and watcher. prompts: write prompts and texts, too"""

    def __init__(self, prompts: bool = False) -> None:
        self._prompts = prompts

    def arrived(self, inquiry: Inquiry, headers: Mapping[str, str]) -> None: ...

    def answered(self, inquiry: Inquiry) -> None:
        level = logging.DEBUG if inquiry.route in _QUIET else logging.INFO
        if not log.isEnabledFor(level):
            return
        about: dict[str, Any] = {
            "request_id": inquiry.id,
            "method": inquiry.method,
            "route": inquiry.route,
            "status": inquiry.status,
            "seconds": round(inquiry.seconds, 6),
        }
        for name in ("model", "key", "prompt_tokens", "output_tokens", "disconnected"):
            if getattr(inquiry, name):
                about[name] = getattr(inquiry, name)
        log.log(level, "request", extra={_FIELDS: about})

    def began(self, seen: Seen) -> None: ...
    def first(self, seen: Seen) -> None: ...

    def ended(self, seen: Seen) -> None:
        faults = [one.error for one in seen.outcomes if one.error]
        if not (self._prompts or faults or seen.error or seen.migrations):
            return
        about: dict[str, Any] = {"model": seen.model, "lane": seen.lane, "stream": seen.request.id}
        if seen.inquiry is not None:
            about["request_id"] = seen.inquiry.id
        if seen.migrations:
            about["migrations"] = seen.migrations
        if seen.error is not None:
            about["error"] = type(seen.error).__name__
        if faults:
            about["faults"] = [f"{one.stage}: {one.kind}" for one in faults]
        if self._prompts:
            about["prompt"] = _plain(seen.request.prompt)
            about["texts"] = [one.text.decode("utf-8", "replace") for one in seen.outcomes]
        log.log(logging.WARNING if seen.error or faults else logging.INFO, "stream", extra={_FIELDS: about})


def _plain(prompt: Prompt) -> Any:
    match prompt:
        case Text(text):
            return text
        case Messages(messages):
            return list(messages)
    return list(prompt.ids)
