"""A line of a batch through the same translation, engines and answers as a request of its own.

Differences to HTTP: lane "batch", whose rows give their slots up to interactive ones; a full queue or a replica that is
gone is waited for, as long as the batch's window is; a key's tokens of the day that are used up are waited for, too.
A line without a seed gets one from the batch and its custom_id, so that a line which is run again after a crash gives
the text it would have given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from raydecode.events import OutcomeEvent
from raydecode.randomness import hash64
from raydecode.request import Prompt, Request
from serve_app import limits, translate
from serve_app.batches.input import BatchLine
from serve_app.batches.proxy import Answered
from serve_app.batches.records import Batch
from serve_app.endpoints import ENDPOINTS, Endpoint, Shaped
from serve_app.failures import ApiError, note, of_exception, of_findings
from serve_app.gateway import Gateway, Lane, Overloaded, Served, Stream, Unavailable
from serve_app.keys import Account
from serve_app.observe.inquiry import Inquiry, current, request_id
from serve_app.observe.watch import WatchedGateway
from serve_app.service import Service

T = TypeVar("T")

TRIES = 3
"""Times that a line whose stream breaks is run; what has not begun is waited for without a count."""
PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
QUOTA_S = 30.0
"""Between looks whether a new day has begun."""


class Patient:
    """A gateway whose requests are rows of a batch: they wait for room instead of failing."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def models(self) -> Sequence[Served]:
        return self._gateway.models()

    async def open(self, model: str, request: Request, *, lane: Lane = "batch", steps: bool = False) -> Stream:
        return await _room(lambda: self._gateway.open(model, request, lane="batch", steps=steps))

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        return await _room(lambda: self._gateway.token_bytes(model))

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        return await _room(lambda: self._gateway.encode(model, prompt))

    async def ready(self) -> bool:
        return await self._gateway.ready()


async def _room(call: Callable[[], Awaitable[T]]) -> T:
    """What the call gives when a replica takes it. The batch's window bounds the wait: its end cancels the line."""
    pause = PAUSE_S
    while True:
        try:
            return await call()
        except Overloaded as error:
            await _as_told(error)
        except Unavailable:
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, 2 * pause)


async def _as_told(error: Overloaded) -> None:
    """Wait as long as was said."""
    await asyncio.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, error.retry_after_s)))


def answering(service: Service, gateway: Gateway) -> Answering:
    """Answers lines for an app: with its configuration, its keys' accounts and its counts."""
    patient = WatchedGateway(Patient(gateway), service.telling.tellers, lane="batch")
    own = Service(patient, service.config, service.telling)
    own.keys = service.keys
    return Answering(own, service.telling.metrics.batch_row)


class Answering:
    """service: over a patient gateway;  told: of every line's status, when it has its answer"""

    def __init__(self, service: Service, told: Callable[[int], None]) -> None:
        self._service, self._told = service, told
        accounts = service.keys.accounts.values()
        self._accounts = {account.name: account for account in accounts}

    async def __call__(self, batch: Batch, line: BatchLine) -> Answered:
        inquiry = Inquiry(request_id(), "BATCH", batch.created["endpoint"], began=time.monotonic())
        token = current.set(inquiry)
        try:
            status, body, tokens = await self._answer(batch, line)
        finally:
            current.reset(token)
        self._told(status)
        return Answered({"status_code": status, "request_id": inquiry.id, "body": body}, tokens)

    async def _answer(self, batch: Batch, line: BatchLine) -> tuple[int, dict[str, Any], tuple[int, ...]]:
        endpoint = ENDPOINTS[line.url]
        account = self._accounts.get(batch.created["owner"], self._service.keys.nobody)
        try:
            call, id, shape = self._call(batch, line, endpoint)
            await self._quota(account)
            body, outcomes = await self._tried(call, id, shape, account, batch)
        except Exception as error:
            failure = of_exception(error, endpoint.body)
            if failure.code == "internal_error":
                note(error, f"{batch.id} {line.custom_id[:80]}")
            return failure.status, failure.body(), ()
        return 200, body, tuple(id for held in outcomes for one in held for id in one.tokens)

    def _call(self, batch: Batch, line: BatchLine, endpoint: Endpoint) -> tuple[translate.Call, str, Shaped]:
        """The line's requests, their id, how the answer looks. Raises what a route would."""
        config = self._service.config
        limits.check(line.body, config.limits)
        if line.body.get("stream"):
            raise ApiError(400, "stream: the lines of a batch are answered whole", param="stream")
        try:
            body = endpoint.body.model_validate(line.body)
        except ValidationError as error:
            raise of_findings(error.errors(include_url=False), endpoint.body) from None
        return endpoint.read(self._service, body, hash64(f"{batch.id}:{line.custom_id}".encode()) >> 11)

    async def _tried(
        self, call: translate.Call, id: str, shape: Shaped, account: Account, batch: Batch
    ) -> tuple[dict[str, Any], list[list[OutcomeEvent]]]:
        until = asyncio.get_running_loop().time() + max(1.0, batch.expires_at - time.time())
        broken = 0
        while True:
            try:
                return await self._service.whole(call, id, shape, until, account)
            except Overloaded as error:  # full where a stream wanted to go on
                await _as_told(error)
            except (Unavailable, ApiError) as error:
                broken += 1
                if broken == TRIES or (isinstance(error, ApiError) and error.status != 503):
                    raise
                await asyncio.sleep(PAUSE_S)

    async def _quota(self, account: Account) -> None:
        while account.used_up(time.time()):
            await asyncio.sleep(QUOTA_S)
