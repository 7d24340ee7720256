"""`/v1/files`: uploads for batches, and their results."""

from __future__ import annotations

import asyncio
import os.path
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message, Receive

from raydecode.errors import nearest
from serve_app.batches.files import CHUNK, FileStore, StoredFile, TooLarge, Unwritable
from serve_app.batches.records import BatchStore
from serve_app.failures import SERVER, ApiError

SLACK = 64 << 10
"""Bytes of a form around its file: boundaries, headers, the small fields."""
PURPOSES = ("batch",)
_LATER = ("assistants", "fine-tune", "vision", "user_data", "evals")
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_LEAST_S, _MOST_S = 3600, 2_592_000

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
                        "expires_after[seconds]": {"type": "integer", "minimum": _LEAST_S, "maximum": _MOST_S},
                    },
                }
            }
        },
    }
}


def files_router(files: FileStore, batches: BatchStore, *, file_bytes: int, keep_s: int | None) -> APIRouter:
    """file_bytes: most of a file;  keep_s: how long one stays that says nothing of it"""
    router = APIRouter(tags=["files"])

    @router.post("/v1/files", openapi_extra=_FORM)
    async def create(request: Request) -> JSONResponse:
        """Upload a file for a batch."""
        form = await _form(request, file_bytes)
        try:
            upload, expires_after_s = _checked(form)
            try:
                file = await asyncio.to_thread(
                    files.create, _pieces(upload), filename=_name(upload.filename), purpose=str(form["purpose"]),
                    owner=owner(request), expires_after_s=expires_after_s or keep_s, most=file_bytes,
                )  # fmt: skip
            except TooLarge:
                raise _too_large(file_bytes) from None
            except Unwritable as error:
                raise unwritable(error) from error
        finally:
            await form.close()
        return JSONResponse(file.to_json())

    @router.get("/v1/files")
    async def list_files(request: Request) -> JSONResponse:
        """The files of this key, the newest first."""
        asked = query(request, "after", "limit", "order", "purpose")
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order: 'asc' or 'desc', got {order!r}", param="order")
        found = await asyncio.to_thread(files.all, owner(request))
        if "purpose" in asked:
            found = [one for one in found if one.purpose == asked["purpose"]]
        if order == "asc":
            found.reverse()
        return JSONResponse(page([one.to_json() for one in found], asked, default=10_000, most=10_000))

    @router.get("/v1/files/{file_id}")
    async def retrieve(request: Request, file_id: str) -> JSONResponse:
        """A file's record."""
        return JSONResponse((await _found(request, file_id)).to_json())

    @router.get("/v1/files/{file_id}/content")
    async def content(request: Request, file_id: str) -> StreamingResponse:
        """A file's bytes."""
        file = await _found(request, file_id)
        headers = {
            "Content-Length": str(file.bytes),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        }
        return StreamingResponse(files.read(file.id), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}")
    async def delete(request: Request, file_id: str) -> JSONResponse:
        """Delete a file that no running batch reads."""
        file = await _found(request, file_id)
        for batch in await asyncio.to_thread(batches.all):
            if batch.ended is None and batch.created["input_file_id"] == file.id:
                raise ApiError(
                    409, f"{batch.id} reads this file and is {batch.status}; cancel it first", param="file_id",
                    code="file_in_use",
                )  # fmt: skip
        await asyncio.to_thread(files.delete, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def _found(request: Request, file_id: str) -> StoredFile:
        file = await asyncio.to_thread(files.get, file_id, owner(request))
        if file is None:
            raise ApiError(404, f"no file {file_id[:80]!r}", param="file_id", code="file_not_found")
        return file

    return router


def owner(request: Request) -> str:
    """The name of the key that asks; "" without keys."""
    account = getattr(request.state, "account", None)
    return str(account.name) if account is not None else ""


def unwritable(error: Unwritable) -> ApiError:
    """507 where there is no room, 503 where the storage does not answer."""
    status, code = (507, "storage_full") if error.full else (503, "storage_unavailable")
    return ApiError(status, f"{error}; tell the server's administrator", type=SERVER, code=code)


def query(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters, each once; one that does not exist is refused."""
    for name in request.query_params:
        if name not in known:
            near = nearest(name, known)
            raise ApiError(
                400, f"no query parameter {name[:80]!r}{f'; nearest: {near}' if near else ''}", param=name[:80],
                code="unknown_parameter",
            )  # fmt: skip
    return dict(request.query_params)


def page(found: list[dict[str, Any]], asked: dict[str, str], *, default: int, most: int) -> dict[str, Any]:
    """OpenAI's list object: `limit` items behind `after`."""
    text = asked.get("limit", str(default))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= limit <= most:
        raise ApiError(400, f"limit: 1 to {most:,}, got {text[:80]!r}", param="limit")
    if "after" in asked:
        ids = [one["id"] for one in found]
        if asked["after"] not in ids:
            raise ApiError(400, f"after: no {asked['after'][:80]!r} in this list", param="after")
        found = found[ids.index(asked["after"]) + 1 :]
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > len(shown),
    }


async def _form(request: Request, most: int) -> FormData:
    """The form, whose body is read no further than it may be long."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "needs multipart/form-data with the fields `file` and `purpose`", param="file")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most + SLACK:
        raise _too_large(most)
    bounded = Request(request.scope, _bounded(request.receive, most))
    try:
        return await bounded.form(max_files=1, max_fields=len(_FIELDS) + 4, max_part_size=SLACK)
    except OSError as error:  # the spool's disk
        raise unwritable(Unwritable("the spool folder", error)) from error


def _bounded(receive: Receive, most: int) -> Receive:
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most + SLACK:
            raise _too_large(most)
        return message

    return bounded


def _checked(form: FormData) -> tuple[UploadFile, int | None]:
    """The upload, and after how many seconds it shall go."""
    for name in form:
        if name not in _FIELDS:
            near = nearest(name, _FIELDS)
            raise ApiError(
                400, f"no field {name[:80]!r}{f'; nearest: {near}' if near else ''}", param=name[:80],
                code="unknown_parameter",
            )  # fmt: skip
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


def expiry(value: Any, field: str) -> int:
    """Seconds after which a file may go: an hour to 30 days."""
    text = str(value)
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if not _LEAST_S <= seconds <= _MOST_S:
        raise ApiError(400, f"{field}: {_LEAST_S:,} to {_MOST_S:,}, got {text[:80]}", param=field)
    return seconds


def _pieces(upload: UploadFile) -> Iterator[bytes]:
    upload.file.seek(0)
    while piece := upload.file.read(CHUNK):
        yield piece


def _name(given: str | None) -> str:
    return os.path.basename((given or "").replace("\\", "/"))[:255] or "upload"


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the file has more than {most:,} bytes (limits.file_bytes); split it", param="file", code="file_too_large"
    )
