"""`POST /v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.bodies import CompletionBody
from serve_app.endpoints import COMPLETIONS
from serve_app.service import STREAMED, Service, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["completions"])

    @router.post("/v1/completions", summary="The text that follows a prompt", response_model=None, responses=STREAMED)
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await service.respond(request, *COMPLETIONS.read(service, body, new_seed()))

    return router
