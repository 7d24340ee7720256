"""`GET /metrics`: what this server has counted, for Prometheus. Asks for a key where there are keys."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from serve_app.observe.metrics import CONTENT_TYPE, exposition
from serve_app.service import Service


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["metrics"])

    @router.get("/metrics", summary="Counts for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        mine = service.telling.metrics.snapshot()
        return Response(exposition([mine, *await service.telling.others()]), media_type=CONTENT_TYPE)

    return router
