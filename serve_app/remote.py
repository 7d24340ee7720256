"""A gateway to replicas on Ray Serve: routing is Serve's, going on after a replica's death is here.

A stream keeps the ids that it has passed on. When its replica dies, the request is opened again with these as
`resume`, the same noise_id, and another replica gives what is missing: one seed, one text makes it exact
(`actors/delivered.py`). A request that twice in a row takes a replica with it without a token in between is not tried
again: it is the likely cause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.delivered import Delivered
from raydecode.config import ServeConfig
from raydecode.errors import RaydecodeError
from raydecode.events import Event
from raydecode.request import Prompt, Request
from serve_app.gateway import Lane, Overloaded, Served, Unavailable
from serve_app.live import EngineDied
from serve_app.local import no_model

FRUITLESS = 2
"""Deaths in a row without a token between them."""
PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
READY_S = 5.0
BUSY_S = 2.0


class _Gone(Exception):
    """The replica has died, or goes; `taken`: it had taken the request."""

    def __init__(self, why: str, taken: bool) -> None:
        super().__init__(why)
        self.taken = taken


class RemoteStream:
    """One request's events, from as many replicas as it takes."""

    def __init__(self, gateway: RemoteGateway, model: str, request: Request, lane: Lane, steps: bool) -> None:
        self._gateway, self._model, self._lane, self._steps = gateway, model, lane, steps
        self._had = Delivered(request)
        self._response: Any = None
        self._fruitless = 0
        self._tokens = 0
        self._closed = False

    @property
    def migrations(self) -> int:
        return max(0, self._had.runs - 1)

    def __aiter__(self) -> RemoteStream:
        return self

    async def __anext__(self) -> list[Event]:
        while not (self._closed or self._had.done):
            try:
                events = await self._next()
                if events is not None:
                    news = self._had.take(events)
                    if news:
                        return news
                elif self._had.refused:
                    await self.begin()
                elif not self._had.done:
                    raise _Gone("the replica ended the stream", taken=True)
            except _Gone as gone:
                self._count(gone)
                await self.begin()
        raise StopAsyncIteration

    async def begin(self) -> None:
        """Have some replica take the request. Raises Overloaded, Unavailable, UserError."""
        request, pause = self._had.begin(), PAUSE_S
        patience = self._gateway.patience_s
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        self._response = self._gateway.call(self._model).generate.remote(
                            request, self._lane, self._steps
                        )
                        first = await self._next()
                        break
                    except _Gone as gone:
                        if gone.taken:
                            self._count(gone)
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE_S)
        except TimeoutError:
            self._cancel()
            raise Unavailable(f"no replica of '{self._model}' took the request within {patience:g} s") from None
        if isinstance(first, Served):
            self._gateway.known[self._model] = first

    async def aclose(self) -> None:
        """Nobody listens any more: the replica frees the slot before its next step."""
        self._closed = True
        if not self._had.done:
            self._cancel()

    async def _next(self) -> Any:
        """The next item of the replica that has the request; None behind its last."""
        try:
            return await anext(self._response)
        except StopAsyncIteration:
            return None
        except BackPressureError as error:
            raise Overloaded(f"every replica of '{self._model}' is busy, and its queue is full", BUSY_S) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise _Gone(str(error).splitlines()[0], taken=isinstance(error, RayActorError)) from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineDied):
                raise _Gone("the engine has ended", taken=True) from error
            if isinstance(cause, Unavailable):  # it drains: another one takes the request
                raise _Gone(str(cause), taken=False) from error
            if isinstance(cause, RaydecodeError):
                raise cause from None
            raise
        except asyncio.CancelledError:
            if self._closed or (task := asyncio.current_task()) is None or task.cancelling():
                self._cancel()
                raise
            raise _Gone("the replica was stopped", taken=True) from None

    def _count(self, gone: _Gone) -> None:
        tokens = sum(map(len, self._had.ids))
        self._fruitless = 1 if tokens > self._tokens else self._fruitless + 1
        self._tokens = tokens
        if self._fruitless >= FRUITLESS:
            raise Unavailable(f"{self._fruitless} replicas in a row ended with this request: {gone}")

    def _cancel(self) -> None:
        if self._response is not None:
            with suppress(Exception):  # it may have ended in the meantime
                self._response.cancel()


class RemoteGateway:
    """handles: model -> handle of its deployment"""

    def __init__(self, config: ServeConfig, handles: Mapping[str, Any]) -> None:
        self._config = config
        self.patience_s = config.limits.start_timeout_s
        self._handles = {name: handle.options(stream=True) for name, handle in handles.items()}
        self._plain = dict(handles)
        self._bytes: dict[str, list[bytes]] = {}
        self._created = int(time.time())
        self.known: dict[str, Served] = {}

    def call(self, model: str) -> Any:
        """The handle for streams."""
        return self._handles[model]

    # ------------------------------------------------------------------ serve_app.gateway.Gateway
    def models(self) -> Sequence[Served]:
        return [self.known.get(name, Served(name, created=self._created)) for name in self._handles]

    async def open(
        self, model: str, request: Request, *, lane: Lane = "interactive", steps: bool = False
    ) -> RemoteStream:
        self._check(model)
        stream = RemoteStream(self, model, request, lane, steps)
        await stream.begin()
        return stream

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        if model not in self._bytes:
            self._bytes[model] = await self._ask(model, "token_bytes")
        return self._bytes[model]

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        return await self._ask(model, "encode", prompt)

    async def ready(self) -> bool:
        wanted = [one.name for one in self._config.models if one.scaling.min]
        return all(await asyncio.gather(*map(self._answers, wanted)))

    # ------------------------------------------------------------------ plain calls
    async def _answers(self, model: str) -> bool:
        try:
            async with asyncio.timeout(READY_S):
                self.known[model] = await self._plain[model].described.remote()
        except Exception:  # whatever keeps it from answering
            return False
        return True

    async def _ask(self, model: str, what: str, *arguments: Any) -> Any:
        """A call of any replica, again when that dies."""
        self._check(model)
        pause = PAUSE_S
        try:
            async with asyncio.timeout(self.patience_s):
                while True:
                    try:
                        return await getattr(self._plain[model], what).remote(*arguments)
                    except (RayActorError, DeploymentUnavailableError):
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE_S)
        except TimeoutError:
            raise Unavailable(f"no replica of '{model}' answered within {self.patience_s:g} s") from None
        except BackPressureError as error:
            raise Overloaded(f"every replica of '{model}' is busy, and its queue is full", BUSY_S) from error
        except RayTaskError as error:
            if isinstance(error.cause, RaydecodeError):
                raise error.cause from None
            raise

    def _check(self, model: str) -> None:
        if model not in self._handles:
            raise no_model(model, [*self._handles])


