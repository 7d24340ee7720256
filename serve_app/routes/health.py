"""`GET /healthz`: the process answers. `GET /readyz`: every model does. Neither asks for a key.

Models are asked at most once in FRESH_S, however many ask the server.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import JSONResponse

from serve_app.service import Service

FRESH_S = 1.0


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])
    asked: asyncio.Task[bool] | None = None
    at = 0.0

    async def ready() -> bool:
        """What the models said within FRESH_S, or say now: one question for all who wait for its answer."""
        nonlocal asked, at
        loop = asyncio.get_running_loop()
        if asked is None or (asked.done() and loop.time() > at + FRESH_S):
            asked = loop.create_task(service.gateway.ready())
            asked.add_done_callback(said)
        return await asyncio.shield(asked)

    def said(task: asyncio.Task[bool]) -> None:
        nonlocal asked, at
        at = asyncio.get_running_loop().time()
        if task.cancelled() or task.exception() is not None:  # ask again
            asked = None

    @router.get("/healthz", summary="The process answers", response_model=None)
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.get(
        "/readyz", summary="Every model answers", response_model=None, responses={503: {"description": "not yet"}}
    )
    async def readyz() -> JSONResponse:
        up = await ready()
        return JSONResponse({"status": "ready" if up else "starting"}, 200 if up else 503)

    return router
