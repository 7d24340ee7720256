"""What the routes of files and of batches share: whose they are, pages of a list, expiry, a storage that is full."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request

from raydecode.errors import nearest
from serve_app.batches.desk import Desk
from serve_app.batches.files import Unwritable
from serve_app.failures import SERVER, ApiError
from serve_app.service import Service

log = logging.getLogger("raydecode.serve")

LEAST_S, MOST_S = 3600, 2_592_000
"""How long a file may be kept."""


def desk(service: Service) -> Desk:
    """Where files and batches are. Raises ApiError where they are off."""
    if service.desk is None:
        raise ApiError(404, "files and batches are off on this server: set batches.path", code="batches_off")
    return service.desk


def owner(request: Request) -> str:
    """The name of the key that asks; "" without keys."""
    return str(request.state.account.name)


def unwritable(error: Unwritable) -> ApiError:
    """507 where there is no room, 503 where the storage does not answer. Where that is, the log says."""
    log.error("%s", error)
    if error.full:
        said = "the server has no room for files; delete some, or tell its administrator"
        return ApiError(507, said, type=SERVER, code="storage_full")
    said = "the server's storage for files takes nothing now; try again later"
    return ApiError(503, said, type=SERVER, code="storage_unavailable")


def only(request: Request, *known: str) -> None:
    """Refuse a query parameter that does not exist."""
    no_other("query parameter", request.query_params, known)


def no_other(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse the first of the names that is not known, with the nearest that is."""
    for name in names:
        if name not in known:
            near = nearest(name, known)
            said = f"no {what} {name[:80]!r}{f'; nearest: {near}' if near else ''}"
            raise ApiError(400, said, param=name[:80], code="unknown_parameter")


def page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """OpenAI's list object: `limit` items behind `after`."""
    if after is not None:
        ids = [one["id"] for one in found]
        if after not in ids:
            raise ApiError(400, f"after: no {after[:80]!r} in this list", param="after")
        found = found[ids.index(after) + 1 :]
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > len(shown),
    }


def expiry(value: Any, field: str) -> int:
    """Seconds after which a file may go: an hour to 30 days."""
    text = str(value)
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
    if not LEAST_S <= seconds <= MOST_S:
        raise ApiError(400, f"{field}: {LEAST_S:,} to {MOST_S:,}, got {text[:80]}", param=field)
    return seconds
