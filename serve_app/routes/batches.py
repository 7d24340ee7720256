"""`/v1/batches`: many requests from a file, answered while nobody else needs the slots."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from raydecode.config.serve import ServeLimitsConfig
from raydecode.errors import nearest
from serve_app import limits as bounds
from serve_app.batches.files import FileStore, Unwritable
from serve_app.batches.records import Batch, BatchStore
from serve_app.bodies import Body
from serve_app.failures import ApiError, of_findings
from serve_app.routes.files import expiry, owner, page, query, unwritable

_WINDOW = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MOST_WINDOW_S = 30 * 86_400

Pair = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class ExpiresAfterBody(Body):
    """When result files may be deleted."""

    anchor: Literal["created_at"]
    """their creation"""
    seconds: int
    """behind it: an hour to 30 days"""


class BatchBody(Body):
    """What to run."""

    input_file_id: str
    """a file of purpose `batch`: JSON lines {custom_id, method, url, body}"""
    endpoint: str
    """which endpoint all its lines name"""
    completion_window: str = "24h"
    """a number and s, m, h or d, at most 30d; what is not answered by then is an error line"""
    metadata: dict[Pair, Value] | None = Field(default=None, max_length=16)
    """up to 16 pairs, kept with the batch"""
    output_expires_after: ExpiresAfterBody | None = None
    """when the result files may go"""


def batches_router(
    files: FileStore, batches: BatchStore, *, endpoints: Sequence[str], poke: Callable[[], Any],
    limits: ServeLimitsConfig,
) -> APIRouter:  # fmt: skip
    """endpoints: what lines may name;  poke: tells the runner to look"""
    router = APIRouter(tags=["batches"])
    schema = {"requestBody": {"required": True, "content": {"application/json": {"schema": BatchBody.model_json_schema()}}}}

    @router.post("/v1/batches", openapi_extra=schema)
    async def create(request: Request) -> JSONResponse:
        """Run the requests of a file."""
        body = await _body(request)
        if body.endpoint not in endpoints:
            near = nearest(body.endpoint, endpoints)
            raise ApiError(
                400, f"endpoint: {body.endpoint[:80]!r}{f'; nearest: {near}' if near else ''}; valid: {', '.join(endpoints)}",
                param="endpoint",
            )  # fmt: skip
        file = await asyncio.to_thread(files.get, body.input_file_id, owner(request))
        if file is None:
            raise ApiError(
                400, f"input_file_id: no file {body.input_file_id[:80]!r}; upload it with purpose 'batch'",
                param="input_file_id", code="file_not_found",
            )  # fmt: skip
        if file.purpose != "batch":
            raise ApiError(
                400, f"input_file_id: a file of purpose {file.purpose!r}; needs 'batch'", param="input_file_id"
            )
        expires = body.output_expires_after
        try:
            batch = await asyncio.to_thread(
                batches.create, input_file_id=file.id, endpoint=body.endpoint,
                completion_window=body.completion_window, window_s=window_s(body.completion_window),
                metadata=body.metadata, owner=owner(request),
                output_expires_after_s=None if expires is None else expiry(expires.seconds, "output_expires_after.seconds"),
            )  # fmt: skip
        except Unwritable as error:
            raise unwritable(error) from error
        await _told(poke)
        return JSONResponse(batch.to_json())

    @router.get("/v1/batches")
    async def list_batches(request: Request) -> JSONResponse:
        """The batches of this key, the newest first."""
        asked = query(request, "after", "limit")
        found = await asyncio.to_thread(batches.all, owner(request))
        return JSONResponse(page([one.to_json() for one in found], asked, default=20, most=100))

    @router.get("/v1/batches/{batch_id}")
    async def retrieve(request: Request, batch_id: str) -> JSONResponse:
        """How a batch stands."""
        return JSONResponse((await _found(request, batch_id)).to_json())

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> JSONResponse:
        """End a batch early; what is answered stays."""
        batch = await _found(request, batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled", "finalizing"):
            raise ApiError(
                409, f"a batch that is {batch.status} cannot be cancelled", param="batch_id", code="batch_not_running"
            )
        try:
            await asyncio.to_thread(batches.put, batch.id, "cancelling")
        except Unwritable as error:
            raise unwritable(error) from error
        await _told(poke)
        return JSONResponse((await _found(request, batch_id)).to_json())

    async def _found(request: Request, batch_id: str) -> Batch:
        batch = await asyncio.to_thread(batches.get, batch_id, owner(request))
        if batch is None:
            raise ApiError(404, f"no batch {batch_id[:80]!r}", param="batch_id", code="batch_not_found")
        return batch

    async def _body(request: Request) -> BatchBody:
        raw = await bounds.read(request.stream(), request.headers.get("content-length"), limits)
        request.state.body = BatchBody
        try:
            return BatchBody.model_validate(bounds.parse(raw, limits))
        except ValidationError as error:
            raise of_findings(error.errors(include_url=False), BatchBody) from None

    return router


def window_s(text: str) -> int:
    """Seconds of a completion window."""
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not 0 < seconds <= MOST_WINDOW_S:
        raise ApiError(
            400, f"completion_window: a number and s, m, h or d, at most 30d; got {text[:80]!r}; nearest: 24h",
            param="completion_window",
        )  # fmt: skip
    return seconds


async def _told(poke: Callable[[], Any]) -> None:
    """The runner may be in this process or behind a handle."""
    answer = poke()
    if asyncio.iscoroutine(answer) or asyncio.isfuture(answer):
        await answer
