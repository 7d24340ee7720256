"""`GET /healthz`: the process answers. `GET /readyz`: every model does. Neither asks for a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from serve_app.service import Service


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process answers", response_model=None)
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.get(
        "/readyz", summary="Every model answers", response_model=None, responses={503: {"description": "not yet"}}
    )
    async def readyz() -> JSONResponse:
        ready = await service.gateway.ready()
        return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)

    return router
