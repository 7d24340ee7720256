"""`POST /v1/responses`. Nothing is stored, so there is nothing to get, cancel or delete."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.endpoints import RESPONSES
from serve_app.responses_body import ResponsesBody
from serve_app.service import STREAMED, Service, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["responses"])

    @router.post("/v1/responses", summary="The assistant's next message", response_model=None, responses=STREAMED)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        return await service.respond(request, *RESPONSES.read(service, body, new_seed()))

    return router
