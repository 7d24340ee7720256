"""`POST /v1/responses`. Nothing is stored, so there is nothing to get, cancel or delete."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app import translate
from serve_app.responses_answers import Responses
from serve_app.responses_body import ResponsesBody
from serve_app.service import STREAMED, Service, new_id, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["responses"])

    @router.post("/v1/responses", summary="The assistant's next message", response_model=None, responses=STREAMED)
    async def responses(body: ResponsesBody, request: Request) -> Response:
        id = new_id("resp_")
        call = translate.responses(body, service.model(body.model), id, new_seed(), service.served(body.model).context)
        return await service.respond(request, call, id, partial(Responses, body=body))

    return router
