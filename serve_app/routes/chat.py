"""`POST /v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve_app import translate
from serve_app.answers import Chat
from serve_app.bodies import ChatBody
from serve_app.service import STREAMED, Service, new_id, new_seed


def routes(service: Service) -> APIRouter:
    router = service.router(tags=["chat"])

    @router.post(
        "/v1/chat/completions", summary="The assistant's next message", response_model=None, responses=STREAMED
    )
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        id = new_id("chatcmpl-")
        call = translate.chat(body, service.model(body.model), id, new_seed(), service.served(body.model).context)
        return await service.respond(request, call, id, Chat)

    return router
