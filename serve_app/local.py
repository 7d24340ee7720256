"""A gateway to engines in this process: for tests, and for a server without Ray.

async with LocalGateway(config) as gateway:
    stream = await gateway.open("toy", request)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from raydecode.assemble import build_engine
from raydecode.config import ServeConfig, ServedModelConfig
from raydecode.contracts import Engine
from raydecode.request import Prompt, Request
from serve_app.gateway import Lane, Served, Unavailable, no_model
from serve_app.live import EngineDied, LiveEngine, LiveStream

__all__ = ["LocalGateway", "described", "live_engine", "no_model"]

log = logging.getLogger("raydecode.serve")


def live_engine(model: ServedModelConfig, queue: int, build: Callable[[], Engine] | None = None) -> LiveEngine:
    """The model's engine, not started. build: another way to make it."""
    make = build or partial(build_engine, model, stream=True)
    return LiveEngine(make, slots=model.engine.slots, queue=queue, probe=model.spec)


def described(name: str, engine: Any, created: int) -> Served:
    """What a running engine says of itself."""
    return Served(
        name,
        engine=str(getattr(engine, "name", type(engine).__name__)),
        dtype=str(getattr(engine, "dtype", "")),
        promise=str(getattr(engine, "promise", "")),
        context=int(getattr(engine, "context", 0) or getattr(getattr(engine, "lane", None), "context", 0)),
        created=created,
    )


class LocalGateway:
    """config: which models; builds: name -> how its engine is made, where not as the config says"""

    def __init__(self, config: ServeConfig, builds: Mapping[str, Callable[[], Engine]] | None = None) -> None:
        self.config, queue = config, config.limits.queue
        self.engines = {one.name: live_engine(one, queue, (builds or {}).get(one.name)) for one in config.models}
        self._created = int(time.time())
        self._up: set[str] = set()
        self._dead: set[str] = set()

    async def start(self) -> None:
        """Load the models, one after another. Raises what loading raises."""
        for name, engine in self.engines.items():
            await engine.start()
            self._up.add(name)

    async def close(self, drain_s: float = 0.0) -> None:
        """Let what runs end within `drain_s`, then stop."""
        for name in [*self._up]:
            if drain_s:
                await self.engines[name].drain(drain_s)
            await self.engines[name].close()
            self._up.discard(name)

    async def __aenter__(self) -> LocalGateway:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ serve_app.gateway.Gateway
    def models(self) -> Sequence[Served]:
        return [
            described(name, engine.engine, self._created) if name in self._up else Served(name, created=self._created)
            for name, engine in self.engines.items()
        ]

    async def open(
        self, model: str, request: Request, *, lane: Lane = "interactive", steps: bool = False
    ) -> LiveStream:
        try:
            return self._engine(model).open(request, lane, steps)
        except EngineDied as error:
            self._note(model, str(error))
            raise Unavailable(f"the engine of '{model}' has ended; the server's log has the details") from error

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        return self._engine(model).token_bytes

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        return await self._engine(model).encode(prompt)

    async def ready(self) -> bool:
        return bool(self.engines) and all(self._answers(name) for name in self.engines)

    def _engine(self, model: str) -> LiveEngine:
        if model not in self.engines:
            raise no_model(model, [*self.engines])
        if model not in self._up:
            raise Unavailable(f"model '{model}' is not loaded yet")
        return self.engines[model]

    def _note(self, model: str, failure: str) -> None:
        """Log, once, where an engine ended: without the error's message, which may quote a prompt."""
        if model not in self._dead:
            self._dead.add(model)
            where = [line for line in failure.splitlines() if line.startswith('  File "')] or [failure]
            log.error("the engine of '%s' has ended\n%s", model, "\n".join(where))

    def _answers(self, name: str) -> bool:
        try:
            self.engines[name].check()
        except EngineDied:
            return False
        return name in self._up
