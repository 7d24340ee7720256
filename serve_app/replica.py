"""A deployment: one engine of one model in a process of its own. Ray Serve starts, scales, checks and drains it.

It answers before Ray calls it running, and ends its process when the engine has ended: its requests then go on in
another replica at once (`serve_app/remote.py`), instead of when health checks have failed often enough.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from raydecode.config import ServedModelConfig
from raydecode.request import Prompt, Request
from serve_app.gateway import Lane, Served
from serve_app.lines import Address, Lines
from serve_app.live import EngineDied, LiveEngine
from serve_app.local import described, live_engine

logger = logging.getLogger("ray.serve")
LAST_WORDS_S = 0.2
"""How long a process whose engine has ended still has to say so."""


class Replica:
    """model: `ServedModelConfig` as JSON; queue: most requests that wait here; threads: those of the engine"""

    async def __init__(  # type: ignore[misc]
        self, model: Mapping[str, Any], queue: int, threads: int | None = None
    ) -> None:
        self._model = ServedModelConfig.model_validate(model)
        if self._model.engine.threads is None and threads:
            engine = self._model.engine.model_copy(update={"threads": threads})
            self._model = self._model.model_copy(update={"engine": engine})
        self._lines = Lines()
        self._live: LiveEngine = live_engine(self._model, queue)
        await self._live.start()
        self._served = described(self._model.name, self._live.engine, int(time.time()))

    async def generate(self, request: Request, lane: Lane, steps: bool, inbox: Address, number: int) -> None:
        """Run a request to its end. First what this replica is goes to the inbox, as a sign that the request is taken,
        then its events. Raises as `open`, and OSError when the inbox has hung up."""
        line = await self._lines.to(inbox)
        try:
            stream = self._live.open(request, lane, steps, partial(line.put, number))
            gone = partial(stream.fail, ConnectionError("the gateway has hung up"))
            line.listeners.add(gone)
            if line.broken:
                gone()
            try:
                line.put(number, self._served)
                await stream.ended()
            finally:  # also when the caller has cancelled
                line.listeners.discard(gone)
                await stream.aclose()
        except EngineDied as error:
            self._end(error)
            raise

    async def described(self) -> Served:
        """What this replica is."""
        return self._served

    async def token_bytes(self) -> list[bytes]:
        """Token id -> its bytes."""
        return list(self._live.token_bytes)

    async def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's ids. Raises RowError."""
        return await self._live.encode(prompt)

    async def load(self) -> dict[str, Any]:
        """Counts, for tests and metrics: process, slots, running and waiting by lane, tokens, yields."""
        lanes = self._live.lanes
        return {
            "pid": os.getpid(),
            "slots": self._live.slots,
            "running": {lane: lanes.running(lane) for lane in ("interactive", "batch")},
            "waiting": {lane: lanes.waiting(lane) for lane in ("interactive", "batch")},
            "tokens": lanes.tokens,
            "steps": lanes.steps,
            "yields": lanes.yields,
        }

    async def check_health(self) -> None:
        """Ray Serve asks; an engine that has ended takes its process along."""
        try:
            self._live.check()
        except EngineDied as error:
            self._end(error)
            raise

    async def __del__(self) -> None:
        if hasattr(self, "_live"):
            await self._live.close()

    def _end(self, error: Exception) -> None:
        logger.error("the engine of '%s' has ended, and this process with it: %s", self._model.name, error)
        asyncio.get_running_loop().call_later(LAST_WORDS_S, os._exit, 1)
