"""The HTTP app: `create_app(gateway, config)`. No Ray here; `serve_app` runs it in process or behind Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from raydecode import __version__
from raydecode.config import ServeConfig
from serve_app import failures
from serve_app.batches.answering import answering
from serve_app.batches.desk import Desk
from serve_app.gateway import Gateway
from serve_app.observe.inquiry import HEADER, Observing
from serve_app.observe.telling import Telling
from serve_app.observe.watch import WatchedGateway
from serve_app.playground import mount_playground
from serve_app.routes import routers
from serve_app.service import Service


def create_app(
    gateway: Gateway, config: ServeConfig, *, desk: Desk | None = None, telling: Telling | None = None
) -> FastAPI:
    """The app over a gateway, which is whoever made it's to start and to close.

    desk:    files and batches; default: those of the configuration, run by this app while its lifespan lasts
    telling: default: as the configuration says
    """
    telling = telling or Telling.of(config)
    runs = desk is None and config.batches.path is not None
    desk = Desk(config.batches) if runs else desk
    service = Service(WatchedGateway(gateway, telling.tellers), config, telling, desk)
    middleware = [Middleware(Observing, watchers=telling.watchers)]
    if config.http.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(config.http.cors_origins), allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["authorization", "content-type", HEADER],
                expose_headers=[HEADER, "retry-after"],
            )
        )  # fmt: skip
    app = FastAPI(
        title="raydecode", version=__version__, middleware=middleware, docs_url=None, redoc_url=None,
        summary="Decoding methods behind OpenAI's API", redirect_slashes=False,
        lifespan=lifespan(service, gateway, runs),
    )  # fmt: skip
    app.state.service = service
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, failures.answer)
    for router in routers(service):
        app.include_router(router)
    if config.http.playground:
        mount_playground(app)
    return app


def lifespan(service: Service, gateway: Gateway, runs: bool) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """While the app serves: batches run, if they are this app's to run; at the end what is told of is sent."""

    @asynccontextmanager
    async def serving(app: FastAPI) -> AsyncIterator[None]:
        pushing = asyncio.create_task(service.telling.pushing())
        try:
            if runs and service.desk is not None:
                told, most = service.telling.metrics.batches, service.config.limits.body_bytes
                async with service.desk.running(answering(service, gateway), told, most):
                    yield
            else:
                yield
        finally:
            pushing.cancel()
            await asyncio.to_thread(service.telling.close)

    return serving
