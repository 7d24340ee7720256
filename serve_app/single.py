"""What an application on Ray has one of: the process that runs its batches and keeps the board of everybody's counts.

A deployment with one replica. When it dies, Ray Serve starts another, which goes on with the batches from their commit
logs; interactive requests never pass through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from raydecode.config import ServeConfig
from serve_app.batches.answering import answering
from serve_app.batches.desk import Desk
from serve_app.observe.board import Board
from serve_app.observe.logs import configure
from serve_app.observe.metrics import Snapshot
from serve_app.observe.telling import Telling
from serve_app.observe.watch import WatchedGateway
from serve_app.remote import RemoteGateway
from serve_app.service import Service

NAME = "single"


class Single:
    """config: `ServeConfig` as JSON; handles: of the models' deployments, in their order"""

    async def __init__(self, config: Mapping[str, Any], *handles: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = ServeConfig.model_validate(config)
        configure(self._config.logging.level, self._config.logging.format)
        self._board, self._telling, self._running = Board(), Telling.of(self._config), AsyncExitStack()
        names = [one.name for one in self._config.models]
        gateway = RemoteGateway(self._config, dict(zip(names, handles, strict=True)))
        self._desk = Desk(self._config.batches) if self._config.batches.path is not None else None
        if self._desk is not None:
            service = Service(WatchedGateway(gateway, self._telling.tellers), self._config, self._telling, self._desk)
            told, most = self._telling.metrics.batches, self._config.limits.body_bytes
            running = self._desk.running(answering(service, gateway), told, most)
            await self._running.enter_async_context(running)

    async def poke(self) -> None:
        """There is a batch to run, or to end."""
        if self._desk is not None:
            await self._desk.poke()

    async def push(self, source: str, snapshot: Snapshot) -> None:
        """What an ingress process has counted."""
        self._board.push(source, snapshot)

    async def read(self, but: str) -> list[Snapshot]:
        """What all others have counted, this process among them."""
        return [*self._board.read(but), self._telling.metrics.snapshot()]

    async def __del__(self) -> None:
        if hasattr(self, "_running"):
            await self._running.aclose()
            self._telling.close()
