"""`POST /v1/embeddings`: known, and refused until an engine gives vectors."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from raydecode.errors import Refused
from serve_app.bodies import EmbeddingBody
from serve_app.service import Service


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["embeddings"])

    @router.post("/v1/embeddings", summary="A vector per text", response_model=None)
    async def embeddings(body: EmbeddingBody) -> Response:
        model = service.model(body.model)
        raise Refused(
            f"'{model.name}' writes texts and gives no vectors: no engine here offers embeddings yet",
            field="input", hint="/v1/models lists what is served",
        )  # fmt: skip

    return router
