"""Where the routes hand over: a request goes in, its events come out. No HTTP and no Ray here.

    stream = await gateway.open("smollm2", request)
    async for events in stream: ...          # lists of hall events, in order per sample; ends behind the last outcome

Two makers: `serve_app/local.py` (an engine in this process) and `serve_app/remote.py` (replicas on Ray Serve, with
migration). Both give the same events for the same request, since a text depends on neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.lanes import Lane
from raydecode.errors import RaydecodeError, UserError, nearest
from raydecode.events import Event
from raydecode.request import Prompt, Request


class Overloaded(RaydecodeError):
    """No room: every queue is full. retry_after_s: when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.retry_after_s)


class Unavailable(RaydecodeError):
    """No replica can take the request now: starting, draining, or gone for longer than a request may wait."""


def no_model(name: str, names: Sequence[str]) -> UserError:
    """The error for a model that is not served."""
    said = name[:100]
    return UserError(
        f"no model '{said}' is served here", field="model", value=said, nearest=nearest(said, names),
        hint=f"models: {', '.join(names)}",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is served.

    name:    what requests call it
    engine:  its name; dtype, promise: what its replicas promise of their texts (empty while none has said so)
    context: tokens of prompt and output together (0 while unknown)
    created: Unix seconds
    """

    name: str
    engine: str = ""
    dtype: str = ""
    promise: str = ""
    context: int = 0
    created: int = 0


class Stream(Protocol):
    """The events of one request."""

    @property
    def migrations(self) -> int:
        """How often it went on in another replica."""
        ...

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...

    async def aclose(self) -> None:
        """Nobody listens any more: the slot is free before the next step. Harmless behind the end, and twice."""
        ...


class Gateway(Protocol):
    """What the routes know of the engines."""

    def models(self) -> Sequence[Served]: ...

    async def open(self, model: str, request: Request, *, lane: Lane = "interactive", steps: bool = False) -> Stream:
        """Start a request. steps: StepEvents come, too.

        Raises UserError (`model`) for a name that is not served, Overloaded, Unavailable. A fault of the request itself
        is an OutcomeEvent with reason "error", as everywhere.
        """
        ...

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        """Token id -> its bytes, empty for special tokens; alternatives are named by id. Raises as `open`."""
        ...

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        """A prompt's token ids, as the engine reads it. Raises as `open`, and RowError for what cannot be read."""
        ...

    async def ready(self) -> bool:
        """Every model that is not scaled to zero has a replica that answers."""
        ...
