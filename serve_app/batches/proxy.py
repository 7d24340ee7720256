"""contracts.Engine over a gateway, so that a batch runs on the ledger and the generation actor of `raydecode generate`.

A row is a line of the batch file, its prompt the line as it is; its text is OpenAI's `response` object in whole:

    submit(Request("0:4711", ..., Text('{"custom_id": ...}')))   ->  a task in the event loop: translate, open, listen
    step()                                                       ->  OutcomeEvent(text=b'{"status_code": 200, ...}')

What the row is part of (samples, token events, replicas) stays behind the gateway. An answer that is an error has its
text too, and a fault, so that the log counts it.

A server that ends cancels what runs and takes its engines away. Neither is an answer: a line that was cancelled by
anybody but `cancel`, or that ends behind `close`, gives no outcome, so it is not committed and the next start runs it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydecode.contracts import Engine
from raydecode.errors import Refused, RowError
from raydecode.events import Event, Fault, OutcomeEvent
from raydecode.request import DecodingSpec, Request, RowId, Text
from serve_app.batches.input import BatchLine, parse


@dataclass(frozen=True, slots=True)
class Answered:
    """response: `{status_code, request_id, body}`; tokens: the ids that were generated for it"""

    response: dict[str, Any]
    tokens: tuple[int, ...] = ()


Answer = Callable[[BatchLine], Awaitable[Answered]]
"""Answer a line as the endpoint would; cancelled when nobody wants it any more."""


class GatewayEngine:
    """endpoint: which all lines name;  answer: in the event loop `loop`;  all else as in the contract"""

    name = "gateway"

    def __init__(self, endpoint: str, answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint, self._answer, self._loop = endpoint, answer, loop
        self._tasks: dict[str, Future[OutcomeEvent]] = {}
        self._ended: deque[OutcomeEvent] = deque()
        self._unwanted: set[str] = set()
        self._closed = False
        self._news = threading.Event()

    def refuse(self, spec: DecodingSpec) -> Refused | None:
        return None  # a line has its own, which the gateway's engines judge

    def submit(self, request: Request) -> None:
        if self._closed:
            return
        future = asyncio.run_coroutine_threadsafe(self._run(request), self._loop)
        self._tasks[request.id] = future
        future.add_done_callback(lambda done: self._done(request.id, done))

    def step(self) -> list[Event]:
        self._news.clear()
        ended: list[Event] = []
        while self._ended:
            outcome = self._ended.popleft()
            self._tasks.pop(outcome.row.request, None)
            ended.append(outcome)
        return ended

    def cancel(self, id: str) -> None:
        task = self._tasks.get(id)
        if task is not None:
            self._unwanted.add(id)
            task.cancel()

    def wait(self, timeout_s: float) -> bool:
        return self._news.wait(timeout_s)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def close(self) -> None:
        """Nobody wants what still runs, however it ends."""
        self._closed = True
        for task in list(self._tasks.values()):
            task.cancel()

    async def _run(self, request: Request) -> OutcomeEvent:
        assert isinstance(request.prompt, Text)
        task = asyncio.current_task()
        assert task is not None
        try:
            answered = await self._answer(parse(request.prompt.text, self._endpoint))
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            raise RowError("gateway", "Cancelled", "what the line waited for was cancelled") from None
        status = int(answered.response["status_code"])
        if status >= 400 and task.cancelling():
            raise asyncio.CancelledError  # an error that the cancellation made
        text = json.dumps(answered.response, ensure_ascii=False).encode("utf-8", "replace")
        fault = Fault("request", f"HTTP{status}", _message(answered.response["body"])) if status >= 400 else None
        return OutcomeEvent(RowId(request.id), "error" if fault else "stop", answered.tokens, text, fault)

    def _done(self, id: str, done: Future[OutcomeEvent]) -> None:
        if self._closed or (done.cancelled() and id not in self._unwanted):
            return
        self._unwanted.discard(id)
        if done.cancelled():
            outcome = OutcomeEvent(RowId(id), "cancelled", (), b"", Fault("request", "cancelled", "cancelled"))
        elif (error := done.exception()) is not None:
            fault = Fault(error.stage, error.kind, error.message) if isinstance(error, RowError) else None
            outcome = OutcomeEvent(
                RowId(id), "error", (), b"", fault or Fault("gateway", type(error).__name__, str(error))
            )
        else:
            outcome = done.result()
        self._ended.append(outcome)
        self._news.set()


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""


if TYPE_CHECKING:
    _contract: type[Engine] = GatewayEngine
