"""`GET /v1/methods`: every method with the JSON Schema of its options, room by room, from the registry."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from raydecode.engine.catalogue import catalogue
from serve_app.service import Service


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["methods"])

    @router.get("/v1/methods", summary="What `decoding` may name", response_model=dict[str, Any])
    def list_methods(room: str | None = None) -> dict[str, Any]:
        return {"object": "list", "data": catalogue(room)}

    return router
