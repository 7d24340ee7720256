"""`/v1/batches`: many requests from a file, answered while nobody else needs the slots."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from raydecode.errors import nearest
from serve_app.batches.files import Unwritable
from serve_app.batches.records import Batch
from serve_app.bodies import Body
from serve_app.endpoints import ENDPOINTS
from serve_app.failures import ApiError
from serve_app.routes.stored import desk, expiry, only, owner, page, unwritable
from serve_app.service import Service

_WINDOW = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MOST_WINDOW_S = 30 * 86_400

Name = Annotated[str, Field(max_length=64)]
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
    """which all its lines name"""
    completion_window: str = "24h"
    """a number and s, m, h or d, at most 30d; what is not answered by then is an error line"""
    metadata: dict[Name, Value] | None = Field(default=None, max_length=16)
    """up to 16 pairs, kept with the batch"""
    output_expires_after: ExpiresAfterBody | None = None
    """when the result files may go"""


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["batches"])

    @router.post("/v1/batches", summary="Run the requests of a file", response_model=None)
    async def create(body: BatchBody, request: Request) -> JSONResponse:
        store = desk(service)
        if body.endpoint not in ENDPOINTS:
            near = nearest(body.endpoint[:80], ENDPOINTS)
            said = f"{body.endpoint[:80]!r}{f'; nearest: {near}' if near else ''}; valid: {', '.join(ENDPOINTS)}"
            raise ApiError(400, f"endpoint: {said}", param="endpoint")
        window, expires = window_s(body.completion_window), body.output_expires_after
        keep = None if expires is None else expiry(expires.seconds, "output_expires_after.seconds")
        file = await asyncio.to_thread(store.files.get, body.input_file_id, owner(request))
        if file is None or file.purpose != "batch":
            said = "no file" if file is None else f"of purpose {file.purpose!r}:"
            raise ApiError(
                400, f"input_file_id: {said} {body.input_file_id[:80]!r}; upload one with purpose 'batch'",
                param="input_file_id", code="file_not_found",
            )  # fmt: skip
        try:
            batch = await asyncio.to_thread(
                store.batches.create, input_file_id=file.id, endpoint=body.endpoint,
                completion_window=body.completion_window, window_s=window, metadata=body.metadata,
                owner=owner(request), output_expires_after_s=keep,
            )  # fmt: skip
        except Unwritable as error:
            raise unwritable(error) from error
        await store.poke()
        return JSONResponse(batch.to_json())

    @router.get("/v1/batches", summary="The batches of this key, the newest first", response_model=None)
    async def list_batches(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> JSONResponse:
        only(request, "after", "limit")
        found = await asyncio.to_thread(desk(service).batches.all, owner(request))
        return JSONResponse(page([one.to_json() for one in found], after, limit))

    @router.get("/v1/batches/{batch_id}", summary="How a batch stands", response_model=None)
    async def retrieve(request: Request, batch_id: str) -> JSONResponse:
        return JSONResponse((await _found(request, batch_id)).to_json())

    @router.post("/v1/batches/{batch_id}/cancel", summary="End a batch early; its answers stay", response_model=None)
    async def cancel(request: Request, batch_id: str) -> JSONResponse:
        batch = await _found(request, batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled", "finalizing"):
            raise ApiError(
                409, f"a batch that is {batch.status} cannot be cancelled", param="batch_id", code="batch_not_running"
            )
        try:
            await asyncio.to_thread(desk(service).batches.put, batch.id, "cancelling")
        except Unwritable as error:
            raise unwritable(error) from error
        await desk(service).poke()
        return JSONResponse((await _found(request, batch_id)).to_json())

    async def _found(request: Request, batch_id: str) -> Batch:
        batch = await asyncio.to_thread(desk(service).batches.get, batch_id, owner(request))
        if batch is None:
            raise ApiError(404, f"no batch {batch_id[:80]!r}", param="batch_id", code="batch_not_found")
        return batch

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
