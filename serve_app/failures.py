"""What went wrong, as OpenAI's clients read it: a status code and `{"error": {message, type, param, code}}`.

    400 invalid_request_error    the body, the request: `param` is the field; code "unsupported": not there yet
    401 authentication_error     no key, or a wrong one
    404 invalid_request_error    no such model ("model_not_found") or address
    408, 504 timeout_error       a client that sends too slowly; a request that takes longer than it may
    413, 415                     a body that is too large, or no JSON
    429 rate_limit_error         queues are full, or the key's rate or quota is used up; `Retry-After`
    500, 503 server_error        a fault of ours; nobody can serve it now

Messages may quote the body, which is the client's own; nothing of it is logged.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from raydecode.complaints import complaint
from raydecode.errors import RaydecodeError, Refused, RowError, UserError
from raydecode.events import Fault
from serve_app.gateway import Overloaded, Unavailable

log = logging.getLogger("raydecode.serve")

INVALID, AUTHENTICATION, RATE, TIMEOUT, SERVER = (
    "invalid_request_error", "authentication_error", "rate_limit_error", "timeout_error", "server_error",
)  # fmt: skip

UNSUPPORTED = "unsupported"
"""The code of what a later version may do, and the type of pydantic's finding for such a field."""


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def of_fault(fault: Fault | None, prompt: str = "prompt") -> ApiError:
    """A row that ended in an error. Its stage says whose fault it is.

    prompt: the field of the body that held the prompt
    """
    if fault is None:
        return ApiError(503, "the request was cancelled by the server", type=SERVER, code="cancelled")
    said = f"{fault.stage}: {fault.message}"
    match fault.stage, fault.kind:
        case "admission", "ContextOverflow":
            return ApiError(400, fault.message, param=prompt, code="context_length_exceeded")
        case "engine", "Deadline":
            return ApiError(504, said, type=TIMEOUT, code="deadline")
        case "request", "Refused":
            field = re.match(r"decoding[.\w\[\]]*", fault.message)
            return ApiError(400, fault.message, param=field.group() if field else None, code=UNSUPPORTED)
        case "sampler", "BadToken":
            return ApiError(400, said, param="logit_bias", code="invalid_token")
        case "request", "BadLimit" | "BadOption" | "BadResume":
            return ApiError(400, said, code=_snake(fault.kind))
        case (("admission" | "request" | "prompt"), _):
            return ApiError(400, said, param=prompt, code=_snake(fault.kind))
    return ApiError(500, said, type=SERVER, code=_snake(fault.kind))


def of_exception(error: BaseException, body: type[BaseModel] | None = None) -> ApiError:
    """Any exception. One that nobody foresaw says nothing of itself to the client.

    body: the model that a validation error is about
    """
    match error:
        case ApiError():
            return error
        case Overloaded():
            wait = max(1, math.ceil(error.retry_after_s))
            return ApiError(
                429, f"{error}; ask again in {wait} s", type=RATE, code="overloaded", headers={"Retry-After": str(wait)}
            )
        case Unavailable():
            return ApiError(503, str(error), type=SERVER, code="unavailable", headers={"Retry-After": "1"})
        case UserError() if error.field == "model":
            return ApiError(404, _said(error), param="model", code="model_not_found")
        case UserError():
            return ApiError(
                400, _said(error), param=error.field, code=UNSUPPORTED if isinstance(error, Refused) else None
            )
        case RowError():
            return of_fault(Fault(error.stage, error.kind, error.message))
        case RequestValidationError():
            return of_findings(error.errors(), body)
        case RaydecodeError():  # an engine that ended while it had the request
            return ApiError(503, "the engine that had the request has ended", type=SERVER, code="unavailable")
        case TimeoutError():
            return ApiError(504, "the request took longer than it may", type=TIMEOUT, code="timeout")
        case HTTPException():
            return ApiError(
                error.status_code, str(error.detail), type=INVALID if error.status_code < 500 else SERVER,
                code="unknown_url" if error.status_code == 404 else None, headers=error.headers,
            )  # fmt: skip
    return ApiError(500, "the server met an error that it did not expect", type=SERVER, code="internal_error")


def of_findings(findings: Sequence[Mapping[str, Any]], body: type[BaseModel] | None) -> ApiError:
    """pydantic's findings about a body, in our words: the field, what it wants, the nearest name."""
    found = [
        {**one, "loc": tuple(one["loc"][1:]) if one["loc"][:1] in (("body",), ("query",)) else one["loc"]}
        for one in findings
    ]
    if not found[0]["loc"]:
        return ApiError(400, "the body must be a JSON object", param=None, code="invalid_body")
    later = next((one for one in found if one["type"] == UNSUPPORTED), None)

    def keys(loc: Sequence[int | str]) -> list[str]:
        at = _inside(body, loc)
        return list(at.model_fields) if at else []

    error = complaint([later] if later else found, keys)
    first = later or next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    codes = {UNSUPPORTED: UNSUPPORTED, "extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
    message = "this field is required" if first["type"] == "missing" else error.message
    return ApiError(
        400, _said(UserError(message, field=error.field, nearest=error.nearest, hint=_hint(first, error.hint))),
        param=error.field, code=codes.get(str(first["type"])),
    )  # fmt: skip


def _hint(finding: Mapping[str, Any], hint: str | None) -> str | None:
    """For an unknown field that names a sampler of ours: how to say it."""
    if finding["type"] == "missing":
        return None
    if finding["type"] != "extra_forbidden":
        return hint
    from raydecode import registry

    name = str(finding["loc"][-1])
    method = registry.methods("samplers").get(name) if len(finding["loc"]) == 1 else None
    if method is None:
        return hint
    options = ", ".join(method.options.model_fields)
    return f'"decoding": {{"sampler": [..., {{"name": "{name}", ...}}]}} does it; its options: {options or "none"}'


def _inside(body: type[BaseModel] | None, loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The model at a place of the body, through optional and list types."""
    at = body
    for part in loc:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part) if at else None
        at = (
            next(
                (one for one in _types(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)), None
            )
            if field
            else None
        )
    return at


def _types(annotation: Any) -> list[Any]:
    return [annotation, *(deep for one in get_args(annotation) for deep in _types(one))]


def _said(error: UserError) -> str:
    """One line: what is wrong, the nearest, the next step."""
    return "; ".join(part.strip() for part in str(error).splitlines() if part.strip())


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()


async def answer(request: Request, error: Exception) -> Response:
    """The exception handler of the app. What nobody foresaw is logged: where, never what was said."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    failure = of_exception(error, getattr(request.state, "body", None))
    if failure.code == "internal_error":
        note(error, getattr(request.state, "request_id", "-"))
    return failure.response()


def note(error: BaseException, request_id: str) -> None:
    """Log an unforeseen error without its message, which may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s: %s\n%s", request_id, type(error).__name__, where)
