"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app.bodies import ChatBody
from serve_app.endpoints import CHAT
from serve_app.service import STREAMED, Service, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["chat"])

    @router.post(
        "/v1/chat/completions", summary="The assistant's next message", response_model=None, responses=STREAMED
    )
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await service.respond(request, *CHAT.read(service, body, new_seed()))

    return router
