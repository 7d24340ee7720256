"""The HTTP app: `create_app(gateway, config)`. No Ray here; `serve_app` runs it in process or behind Ray Serve."""

from __future__ import annotations

import re
import secrets

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydecode import __version__
from raydecode.config import ServeConfig
from serve_app import failures
from serve_app.gateway import Gateway
from serve_app.playground import mount_playground
from serve_app.routes import routers
from serve_app.service import Service

REQUEST_ID = "x-request-id"
_SANE = re.compile(r"[\w.:/@+=-]{1,128}")


def create_app(gateway: Gateway, config: ServeConfig) -> FastAPI:
    """The app over a gateway. It starts nothing: the gateway is whoever made it's to start and to close."""
    service = Service(gateway, config)
    middleware = [Middleware(RequestId)]
    if config.http.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(config.http.cors_origins), allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["authorization", "content-type", REQUEST_ID],
                expose_headers=[REQUEST_ID, "retry-after"],
            )
        )  # fmt: skip
    app = FastAPI(
        title="raydecode", version=__version__, middleware=middleware, docs_url=None, redoc_url=None,
        summary="Decoding methods behind OpenAI's API", redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, failures.answer)
    for router in routers(service):
        app.include_router(router)
    if config.http.playground:
        mount_playground(app)
    return app


class RequestId:
    """Every request has an id: the client's own where it sends a sane one. It is in the answer and in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        id = given if _SANE.fullmatch(given) else "req-" + secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = id
            await send(message)

        await self.app(scope, receive, with_id)
