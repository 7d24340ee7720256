"""Files and batches of a server: where they lie, and who is told when there is work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from raydecode.config import BatchesConfig
from serve_app.batches.files import FileStore, check
from serve_app.batches.records import BatchStore
from serve_app.batches.run import AnswerOf, Settings
from serve_app.batches.runner import Runner

DAY_S = 86_400


class Desk:
    """config: with a path;  poke: tells the process that runs batches; None: `running` in this one does"""

    def __init__(self, config: BatchesConfig, poke: Callable[[], Awaitable[Any]] | None = None) -> None:
        assert config.path is not None, "the routes are off without a path"
        check(config.path)
        self.files, self.batches = FileStore(config.path), BatchStore(config.path)
        self.keep_s = int(config.keep_days * DAY_S)
        self._config, self._poke = config, poke
        self._runner: Runner | None = None

    async def poke(self) -> None:
        """There is something to run, or to end."""
        if self._poke is not None:
            await self._poke()
        elif self._runner is not None:
            self._runner.poke()

    @asynccontextmanager
    async def running(
        self, answer: AnswerOf, told: Callable[[dict[str, int]], None], body_bytes: int
    ) -> AsyncIterator[None]:
        """Run batches in this process while inside. told: of the batches that are not ended, by status;
        body_bytes: limits.body_bytes"""
        settings = Settings(
            self._config.slots, self._config.lines, self._config.flush_s, self._config.keep_rows, self.keep_s,
            body_bytes,
        )
        loop = asyncio.get_running_loop()
        self._runner = Runner(
            self.files, self.batches, answer, loop, running=self._config.running, settings=settings, told=told
        )
        self._runner.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._runner.stop)
            self._runner = None
