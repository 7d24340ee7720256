"""A gateway to replicas on Ray Serve: routing is Serve's, going on after a replica's death is here.

A stream keeps the ids that it has passed on. When its replica dies, the request is opened again with these as
`resume`, the same noise_id, and another replica gives what is missing: one seed, one text makes it exact
(`actors/delivered.py`). A request that loses FRUITLESS replicas in a row without a token in between is not tried again:
it is the likely cause. From the second on it waits a while, each for a time of its own, so that those which only stood
beside it get a token before it is back. Events come over `serve_app/lines.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.delivered import Delivered
from raydecode.config import ServeConfig
from raydecode.errors import RaydecodeError, UserError
from raydecode.events import Event
from raydecode.request import Prompt, Request
from serve_app.gateway import Lane, Overloaded, Served, Unavailable
from serve_app.lines import Address, Inbox
from serve_app.live import EngineDied
from serve_app.local import no_model

FRUITLESS = 4
"""Deaths in a row without a token between them."""
APART_S = 1.0
"""Least wait behind the second; up to three times as long, and doubled behind each further one."""
PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
READY_S, LATE_S = 5.0, 10.0
BUSY_S = 2.0


class _Gone(Exception):
    """The replica has died, or goes; `taken`: it had taken the request."""

    def __init__(self, why: str, taken: bool) -> None:
        super().__init__(why)
        self.taken = taken


class _Run:
    """A request in one replica: the events that came and nobody has seen, and how the run ended."""

    def __init__(self, inbox: Inbox, address: Address, handle: Any, request: Request, lane: Lane, steps: bool) -> None:
        self._inbox = inbox
        self.served: Served | None = None
        self._events: deque[Event] = deque()
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self._number = inbox.open(self._take)
        self._response = handle.generate.remote(request, lane, steps, address, self._number)
        self._call = asyncio.create_task(self._wait())

    async def taken(self) -> Served:
        """Wait until a replica has the request. Raises what keeps it from being taken."""
        while self.served is None:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        return self.served

    async def events(self) -> list[Event]:
        """What came since the last look. Raises _Gone when nothing more will."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        out = list(self._events)
        self._events.clear()
        return out

    def end(self, cancel: bool) -> None:
        """Hear nothing more of it; cancel: the replica, too, is to stop."""
        self._inbox.forget(self._number)
        self._fail(_Gone("nobody listens", taken=False))  # wakes who waits
        if cancel and not self._call.done():
            with suppress(Exception):  # it may end at this very moment
                self._response.cancel()

    # ------------------------------------------------------------------ what comes in
    def _take(self, item: Any) -> None:
        if item is None:
            self._fail(_Gone("the connection to the replica has ended", taken=True))
        elif isinstance(item, Served):
            self.served = item
        else:
            self._events.append(item)
        self._news.set()

    async def _wait(self) -> None:
        """The call itself: it returns when the replica has sent everything, or raises."""
        try:
            await self._response
        except (Exception, asyncio.CancelledError) as error:
            self._fail(_said(error, taken=self.served is not None))
        else:
            asyncio.get_running_loop().call_later(LATE_S, self._fail, _Gone("the replica ended the stream", taken=True))

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._news.set()


class RemoteStream:
    """One request's events, from as many replicas as it takes."""

    def __init__(self, gateway: RemoteGateway, model: str, request: Request, lane: Lane, steps: bool) -> None:
        self._gateway, self._model, self._lane, self._steps = gateway, model, lane, steps
        self._had = Delivered(request)
        self._run: _Run | None = None
        self._fruitless = self._tokens = 0
        self._closed = False

    @property
    def migrations(self) -> int:
        return max(0, self._had.runs - 1)

    def __aiter__(self) -> RemoteStream:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._closed and self._run is not None:
            try:
                events = await self._run.events()
            except _Gone as gone:
                if self._closed:
                    break
                self._count(gone)
                await self._step_aside()
                if self._closed:
                    break
                await self.begin()
                continue
            news = self._had.take(events)
            if self._had.done:
                self._leave(cancel=self._had.diverged)
            elif self._had.refused:  # this replica cannot go on from ids
                await self.begin()
            if news:
                return news
        raise StopAsyncIteration

    async def begin(self) -> None:
        """Have some replica take the request. Raises Overloaded, Unavailable, UserError."""
        request, pause, patience = self._had.begin(), PAUSE_S, self._gateway.patience_s
        try:
            async with asyncio.timeout(patience):
                while not self._closed:
                    self._leave(cancel=True)
                    self._run = await self._gateway.run(self._model, request, self._lane, self._steps)
                    try:
                        self._gateway.known[self._model] = await self._run.taken()
                        if not self._closed:
                            return
                    except _Gone as gone:
                        if gone.taken:
                            self._count(gone)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                self._leave(cancel=True)
        except TimeoutError:
            self._leave(cancel=True)
            raise Unavailable(f"no replica of '{self._model}' took the request within {patience:g} s") from None
        except BaseException:
            self._leave(cancel=True)
            raise

    async def aclose(self) -> None:
        """Nobody listens any more: the replica frees the slot before its next step."""
        self._closed = True
        self._leave(cancel=not self._had.done)

    async def _step_aside(self) -> None:
        if self._fruitless > 1:
            await asyncio.sleep(random.uniform(1, 3) * APART_S * 2 ** (self._fruitless - 2))

    def _leave(self, *, cancel: bool) -> None:
        if self._run is not None:
            self._run.end(cancel)
            self._run = None

    def _count(self, gone: _Gone) -> None:
        tokens = sum(map(len, self._had.ids))
        self._fruitless = 1 if tokens > self._tokens else self._fruitless + 1
        self._tokens = tokens
        if self._fruitless >= FRUITLESS:
            self._leave(cancel=True)
            raise Unavailable(f"{self._fruitless} replicas in a row ended with this request: {gone}")


class RemoteGateway:
    """handles: model -> handle of its deployment; host: an address of this machine that replicas reach"""

    def __init__(self, config: ServeConfig, handles: Mapping[str, Any], host: str | None = None) -> None:
        self._config, self._handles, self._host = config, dict(handles), host
        self.patience_s = config.limits.start_timeout_s
        self._bytes: dict[str, list[bytes]] = {}
        self._created = int(time.time())
        self._inbox: tuple[asyncio.AbstractEventLoop, asyncio.Task[tuple[Inbox, Address]]] | None = None
        self.known: dict[str, Served] = {}

    async def close(self) -> None:
        """Hear nothing more; streams that are open end."""
        if self._inbox is not None and self._inbox[0] is asyncio.get_running_loop():
            inbox, _ = await self._inbox[1]
            await inbox.close()
            self._inbox = None

    async def run(self, model: str, request: Request, lane: Lane, steps: bool) -> _Run:
        """Send the request to some replica."""
        inbox, address = await self._listening()
        return _Run(inbox, address, self._handles[model], request, lane, steps)

    async def _listening(self) -> tuple[Inbox, Address]:
        """The inbox of this event loop, opened by the first who needs it."""
        loop = asyncio.get_running_loop()
        if self._inbox is None or self._inbox[0] is not loop:
            self._inbox = loop, loop.create_task(_open_inbox(self._host))
        return await asyncio.shield(self._inbox[1])

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
                self.known[model] = await self._handles[model].described.remote()
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
                        return await getattr(self._handles[model], what).remote(*arguments)
                    except Exception as error:
                        said = _said(error, taken=False)
                        if not isinstance(said, _Gone):
                            raise said from None
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
        except TimeoutError:
            raise Unavailable(f"no replica of '{model}' answered within {self.patience_s:g} s") from None

    def _check(self, model: str) -> None:
        if model not in self._handles:
            raise no_model(model, [*self._handles])


async def _open_inbox(host: str | None) -> tuple[Inbox, Address]:
    from ray.util import get_node_ip_address

    inbox = Inbox(host or get_node_ip_address())
    return inbox, await inbox.start()


def _said(error: BaseException, taken: bool) -> Exception:
    """What a call of Ray Serve raised, in our words."""
    if isinstance(error, BackPressureError):
        return Overloaded("every replica is busy, and the queue is full", BUSY_S)
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, EngineDied):
            return _Gone("the engine has ended", taken=True)
        if isinstance(cause, Unavailable):  # it drains: another one takes the request
            return _Gone(str(cause), taken=False)
        if isinstance(cause, OSError):  # it cannot reach this process any more, or could not
            return _Gone(str(cause), taken=taken)
        if isinstance(cause, UserError) and cause.field == "id":  # the run before has not ended there yet
            return _Gone(str(cause), taken=False)
        return cause if isinstance(cause, RaydecodeError) else error
    if isinstance(error, RayActorError | TaskCancelledError | asyncio.CancelledError):
        return _Gone((str(error) or "the replica was stopped").splitlines()[0], taken=taken)
    if isinstance(error, DeploymentUnavailableError):
        return _Gone(str(error), taken=False)
    return error if isinstance(error, Exception) else RuntimeError(str(error))
