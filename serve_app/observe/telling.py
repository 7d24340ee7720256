"""Everybody who tells of what the server does, as the configuration asks for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from raydecode.config import ServeConfig
from serve_app.observe.board import PUSH_S
from serve_app.observe.inquiry import Watcher
from serve_app.observe.logs import Lines
from serve_app.observe.metrics import Metrics, Snapshot
from serve_app.observe.tracing import Tracing, exporting
from serve_app.observe.watch import Teller


class Telling:
    """metrics: always counted;  tracing: None when it is off;  others: what the other processes of the application have
    counted;  push: where this one's counts go, now and then
    """

    def __init__(self, metrics: Metrics, lines: Lines, tracing: Tracing | None = None) -> None:
        self.metrics, self.tracing = metrics, tracing
        self.others: Callable[[], Awaitable[list[Snapshot]]] = _nobody
        self.push: Callable[[Snapshot], Awaitable[None]] | None = None
        both: list[Metrics | Lines | Tracing] = [metrics, lines] if tracing is None else [tracing, metrics, lines]
        self.tellers: tuple[Teller, ...] = tuple(both)
        self.watchers: tuple[Watcher, ...] = tuple(both)

    @classmethod
    def plain(cls) -> Telling:
        """Metrics and log lines."""
        return cls(Metrics(), Lines())

    @classmethod
    def of(cls, config: ServeConfig) -> Telling:
        """As configured. Raises UserError where traces are asked for and cannot be made."""
        asked = config.tracing
        tracing = Tracing(exporting(asked.endpoint, asked.share)) if asked.endpoint else None
        return cls(Metrics(), Lines(config.logging.prompts), tracing)

    async def pushing(self) -> None:
        """Push until cancelled. One that fails is followed by the next."""
        while self.push is not None:
            with contextlib.suppress(Exception):
                await self.push(self.metrics.snapshot())
            await asyncio.sleep(PUSH_S)

    def close(self) -> None:
        """Send what is left to send."""
        if self.tracing is not None:
            self.tracing.close()


async def _nobody() -> list[Snapshot]:
    return []
