"""`GET /v1/models`, `GET /v1/models/{id}`: what is served, and what its engine promises."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from raydecode.config import decoding_json
from serve_app.service import Service


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["models"])

    def described(name: str) -> dict[str, Any]:
        model, served = service.model(name), service.served(name)
        return {
            "id": name, "object": "model", "created": served.created, "owned_by": "raydecode",
            "raydecode": {
                "engine": served.engine, "dtype": served.dtype, "promise": served.promise, "context": served.context,
                "decoding": decoding_json(model.spec),
            },
        }  # fmt: skip

    @router.get("/v1/models", summary="The models that are served", response_model=dict[str, Any])
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(one.name) for one in service.config.models]}

    @router.get("/v1/models/{model:path}", summary="One of them", response_model=dict[str, Any])
    async def get_model(model: str) -> dict[str, Any]:
        return described(model)

    return router
