"""What all routes share: the gateway, the configuration, the keys; and the way every request takes through them.

origin -> key -> body within its limits -> validated (FastAPI) -> route -> relay -> answer
any exception -> OpenAI's error
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, params
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raydecode.config import ServeConfig, ServedModelConfig
from raydecode.events import OutcomeEvent
from serve_app import failures, limits, origins
from serve_app.answers import Told, fingerprint
from serve_app.batches.desk import Desk
from serve_app.failures import TIMEOUT, ApiError
from serve_app.gateway import Gateway, Served, no_model
from serve_app.keys import Account, Keys
from serve_app.observe.telling import Telling
from serve_app.prompts import prompted, silent
from serve_app.relay import EventStream, Relay, Shape, chunks, collect, unless_gone
from serve_app.translate import Call

BODY_S = 60.0
"""Longest that a client may take to send a body."""


@dataclass
class Service:
    """One per app. desk: files and batches, None where they are off"""

    gateway: Gateway
    config: ServeConfig
    telling: Telling = field(default_factory=Telling.plain)
    desk: Desk | None = None
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = Keys(self.config.keys, self.config.http.anonymous)

    # ------------------------------------------------------------------ models
    def model(self, name: str) -> ServedModelConfig:
        """What the configuration says of a model; UserError (`model`) for one that is not served."""
        found = self.config.model_named(name)
        if found is None:
            raise no_model(name, [one.name for one in self.config.models])
        return found

    def served(self, name: str) -> Served:
        """What its replicas say of it."""
        return next((one for one in self.gateway.models() if one.name == name), Served(name))

    # ------------------------------------------------------------------ a call from its requests to its response
    async def respond(self, request: Request, call: Call, id: str, shaped: Callable[[Told], Shape]) -> Response:
        """Run a call and answer it, streamed or whole. Its slots are free when this or its stream has ended."""
        until = asyncio.get_running_loop().time() + self.config.limits.request_timeout_s
        account: Account = request.state.account

        spend = self._spends(account)
        told = await unless_gone(request.receive, self._told(call, id, until, spend))
        shape = shaped(told)
        relay = Relay(self.gateway, call, until, spend)
        if not call.write:
            return JSONResponse(shape.answer(silent(call, told.prompts), 0))
        if not call.stream:
            await unless_gone(request.receive, collect(relay))
            return JSONResponse(shape.answer(relay.ended, relay.migrations))
        offsets = [len(said.text) for said in told.prompts] or [0] * len(call.requests)
        rest = chunks(relay, call, shape, offsets)
        return EventStream(await self._first(request, rest), rest)

    async def whole(
        self, call: Call, id: str, shaped: Callable[[Told], Shape], until: float, account: Account
    ) -> tuple[dict[str, Any], list[list[OutcomeEvent]]]:
        """A call without HTTP: its answer, and the outcomes behind it."""
        spend = self._spends(account)
        told = await self._told(call, id, until, spend)
        shape = shaped(told)
        if not call.write:
            return shape.answer(silent(call, told.prompts), 0), []
        relay = await collect(Relay(self.gateway, call, until, spend))
        return shape.answer(relay.ended, relay.migrations), relay.ended

    def _spends(self, account: Account) -> Callable[[int], None] | None:
        """Charges tokens; None where nobody counts them."""
        return partial(self.keys.spend, account) if account.counts else None

    async def _told(self, call: Call, id: str, until: float, spend: Callable[[int], None] | None) -> Told:
        """What the answer needs to know before there is one."""
        shows = call.top is not None or call.trace or call.echo
        async with asyncio.timeout_at(until):
            table = await self.gateway.token_bytes(call.model) if shows else ()
            prompts = await prompted(self.gateway, call, table, until, spend) if call.echo else ()
        print_of = cache(lambda: fingerprint(self.served(call.model)))
        return Told(id, int(time.time()), call, print_of, table, prompts)

    async def _first(self, request: Request, rest: AsyncGenerator[bytes, None]) -> bytes:
        """The first chunk, so that a request which cannot be served has a status code of its own."""
        try:
            return await unless_gone(request.receive, anext(rest))
        except BaseException:
            await rest.aclose()
            raise

    # ------------------------------------------------------------------ routers
    def router(self, **options: Any) -> APIRouter:
        """A router whose routes ask for a key, bound their JSON bodies, and answer errors as OpenAI does."""
        return APIRouter(route_class=guarded(self), responses=ERRORS, **options)


class Failure(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FailureBody(BaseModel):
    """Every answer that is an error."""

    error: Failure


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": FailureBody, "description": "the request; `param` names the field"},
    "5XX": {"model": FailureBody, "description": "the server"},
}


SSE = {"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
"""One server-sent event; `data` is JSON, or [DONE]."""

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer, or with `stream` its events",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": SSE},
        },
    }
}
"""What a route answers that can stream."""


def new_id(prefix: str) -> str:
    """`chatcmpl-` and 96 random bits."""
    return prefix + secrets.token_hex(12)


def new_seed() -> int:
    """A seed that JavaScript can hold."""
    return secrets.randbits(53)


def guarded(service: Service) -> type[APIRoute]:
    """The route class of `Service.router`."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()
            takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, params.Form)
            body = self.body_field.field_info.annotation if takes_json and self.body_field else None

            async def guard(request: Request) -> Response:
                try:
                    peer = request.client.host if request.client else None
                    request.state.body = body
                    origins.check(request.method, request.headers, service.config.http.cors_origins)
                    request.state.account, headers = service.keys.admit(request.headers, peer)
                    if takes_json:
                        request = Bounded(request.scope, request.receive)
                        await request.take(service.config)
                    response = await handler(request)
                    response.headers.update(headers)
                    return response
                except Exception as error:
                    return await failures.answer(request, error)

            return guard

    return Guarded


class Bounded(Request):
    """A request whose JSON body is read and parsed within the limits."""

    async def take(self, config: ServeConfig) -> None:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another origin can send all others without asking
            raise ApiError(415, f"Content-Type must be application/json, got {kind[:80] or 'none'!r}", code="not_json")
        try:
            async with asyncio.timeout(BODY_S):
                self._body = await limits.read(
                    self.stream(), self.headers.get("content-length"), config.limits.body_bytes
                )
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_S:g} s", type=TIMEOUT, code="timeout") from None
        if not self._body:
            raise ApiError(400, "the body is empty; it must be a JSON object", code="invalid_body")
        self._json = limits.parse(self._body, config.limits)
        if not isinstance(self._json, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_body")
