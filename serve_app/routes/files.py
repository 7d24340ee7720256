"""`/v1/files`: uploads for batches, and their results."""

from __future__ import annotations

import asyncio
import os.path
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message, Receive

from serve_app.batches.files import CHUNK, StoredFile, TooLarge, Unwritable
from serve_app.failures import TIMEOUT, ApiError
from serve_app.routes.stored import LEAST_S, MOST_S, desk, expiry, no_other, only, owner, page, unwritable
from serve_app.service import BODY_S, Service

SLACK = 64 << 10
"""Bytes of a form around its file: boundaries, headers, the small fields."""
PURPOSES = ("batch",)
_LATER = ("assistants", "fine-tune", "vision", "user_data", "evals")
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines, one request each"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": LEAST_S, "maximum": MOST_S},
                    },
                }
            }
        },
    }
}


def routes(service: Service) -> APIRouter:
    router, file_bytes = service.router(tags=["files"]), service.config.limits.file_bytes

    @router.post("/v1/files", summary="Upload a file for a batch", response_model=None, openapi_extra=_FORM)
    async def create(request: Request) -> JSONResponse:
        store = desk(service)
        form = await _form(request, file_bytes, service.config.limits.request_timeout_s)
        try:
            upload, expires_after_s = _checked(form)
            try:
                file = await asyncio.to_thread(
                    store.files.create, _pieces(upload), filename=_name(upload.filename), purpose=str(form["purpose"]),
                    owner=owner(request), expires_after_s=expires_after_s or store.keep_s, most=file_bytes,
                )  # fmt: skip
            except TooLarge:
                raise _too_large(file_bytes) from None
            except Unwritable as error:
                raise unwritable(error) from error
        finally:
            await form.close()
        return JSONResponse(file.to_json())

    @router.get("/v1/files", summary="The files of this key, the newest first", response_model=None)
    async def list_files(
        request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc", purpose: str | None = None,
    ) -> JSONResponse:  # fmt: skip
        only(request, "after", "limit", "order", "purpose")
        found = await asyncio.to_thread(desk(service).files.all, owner(request))
        if purpose is not None:
            found = [one for one in found if one.purpose == purpose]
        if order == "asc":
            found.reverse()
        return JSONResponse(page([one.to_json() for one in found], after, limit))

    @router.get("/v1/files/{file_id}", summary="The record of a file", response_model=None)
    async def retrieve(request: Request, file_id: str) -> JSONResponse:
        return JSONResponse((await _found(request, file_id)).to_json())

    @router.get(
        "/v1/files/{file_id}/content", summary="The bytes of a file", response_class=StreamingResponse,
        responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    )  # fmt: skip
    async def content(request: Request, file_id: str) -> StreamingResponse:
        file = await _found(request, file_id)
        headers = {
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        }
        pieces = desk(service).files.read(file.id)
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", summary="Delete a file that no running batch reads", response_model=None)
    async def delete(request: Request, file_id: str) -> JSONResponse:
        file = await _found(request, file_id)
        for batch in await asyncio.to_thread(desk(service).batches.all):
            if batch.ended is None and batch.created["input_file_id"] == file.id:
                raise ApiError(
                    409, f"{batch.id} reads this file and is {batch.status}; cancel it first", param="file_id",
                    code="file_in_use",
                )  # fmt: skip
        await asyncio.to_thread(desk(service).files.delete, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def _found(request: Request, file_id: str) -> StoredFile:
        file = await asyncio.to_thread(desk(service).files.get, file_id, owner(request))
        if file is None:
            raise ApiError(404, f"no file {file_id[:80]!r}", param="file_id", code="file_not_found")
        return file

    return router


async def _form(request: Request, most: int, most_s: float) -> FormData:
    """The form, whose body is read no further than it may be long, and no longer than it may take."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "needs multipart/form-data with the fields `file` and `purpose`", param="file")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most + SLACK:
        raise _too_large(most)
    bounded = Request(request.scope, _bounded(request.receive, most))
    try:
        async with asyncio.timeout(most_s):
            return await bounded.form(max_files=1, max_fields=len(_FIELDS) + 4, max_part_size=SLACK)
    except TimeoutError:  # an OSError, too
        raise _too_slow(f"the file did not come within {most_s:g} s (limits.request_timeout_s)") from None
    except OSError as error:  # the spool's disk
        raise unwritable(Unwritable("the spool folder", error)) from error


def _bounded(receive: Receive, most: int) -> Receive:
    size = 0

    async def bounded() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout(BODY_S):
                message = await receive()
        except TimeoutError:
            raise _too_slow(f"nothing of the file came for {BODY_S:g} s") from None
        size += len(message.get("body", b""))
        if size > most + SLACK:
            raise _too_large(most)
        return message

    return bounded


def _checked(form: FormData) -> tuple[UploadFile, int | None]:
    """The upload, and after how many seconds it shall go."""
    no_other("field", form, _FIELDS)
    purpose, upload = form.get("purpose"), form.get("file")
    if purpose not in PURPOSES:
        later = " is not supported here; files are for batches" if purpose in _LATER else ""
        raise ApiError(400, f"purpose: {str(purpose)[:80]!r}{later}; valid: 'batch'", param="purpose")
    if not isinstance(upload, UploadFile):
        raise ApiError(400, "file: needs a file", param="file", code="missing_required_parameter")
    if upload.size == 0:
        raise ApiError(400, "file: is empty", param="file", code="empty_file")
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return upload, None
    if anchor != "created_at":
        raise ApiError(400, f"expires_after[anchor]: 'created_at', got {str(anchor)[:80]!r}", param="expires_after")
    return upload, expiry(seconds, "expires_after[seconds]")


def _pieces(upload: UploadFile) -> Iterator[bytes]:
    upload.file.seek(0)
    while piece := upload.file.read(CHUNK):
        yield piece


def _name(given: str | None) -> str:
    return os.path.basename((given or "").replace("\\", "/"))[:255] or "upload"


def _too_slow(said: str) -> ApiError:
    return ApiError(408, said, type=TIMEOUT, param="file", code="timeout")


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the file has more than {most:,} bytes (limits.file_bytes); split it", param="file", code="file_too_large"
    )
