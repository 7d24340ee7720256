"""`POST /v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app import translate
from serve_app.answers import Completion
from serve_app.bodies import CompletionBody
from serve_app.service import STREAMED, Service, new_id, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["completions"])

    @router.post("/v1/completions", summary="The text that follows a prompt", response_model=None, responses=STREAMED)
    async def completions(body: CompletionBody, request: Request) -> Response:
        id = new_id("cmpl-")
        call = translate.completion(body, service.model(body.model), id, new_seed(), service.served(body.model).context)
        return await service.respond(request, call, id, Completion)

    return router
