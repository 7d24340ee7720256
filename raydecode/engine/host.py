"""What monitors may ask of their surroundings. Services run on threads; a row whose answer is open is parked."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from raydecode.constraint import Pending
from raydecode.errors import RowError

KEPT = 4096
"""Answers kept after they came. A row that is parked asks at every step, so the ones forgotten are those of rows that
ended: this must only be more than live rows ask between two steps."""


class ServiceHost:
    """token_bytes, eos: the vocabulary. services: name -> function of a JSON-able payload; may be slow, may raise."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        eos: frozenset[int],
        services: Mapping[str, Callable[[Any], Any]] | None = None,
        threads: int = 4,
    ) -> None:
        self.token_bytes, self.eos = token_bytes, eos
        self._services = dict(services or {})
        self._answers: OrderedDict[tuple[str, str], Future[Any]] = OrderedDict()  # asked longest ago first
        self._pool = ThreadPoolExecutor(threads, "service") if self._services else None

    def ask(self, service: str, payload: Any) -> Any | Pending:
        """The answer (kept by payload: asking again is free), or Pending. A service's exception is the row's fault."""
        if self._pool is None or service not in self._services:
            raise RowError(
                "service", "UnknownService", f"no service '{service}'; given: {', '.join(self._services) or 'none'}"
            )
        key = service, json.dumps(payload, sort_keys=True)
        if key not in self._answers:
            self._forget()
            self._answers[key] = self._pool.submit(self._services[service], payload)
        self._answers.move_to_end(key)
        future = self._answers[key]
        return future.result() if future.done() else Pending(f"{service}:{key[1]}")

    def _forget(self) -> None:
        """Room for one more among KEPT; never a question that is still open: its row waits for it."""
        if len(self._answers) >= KEPT:
            oldest = next((key for key, future in self._answers.items() if future.done()), None)
            if oldest:
                del self._answers[oldest]

    def wait(self, timeout_s: float) -> bool:
        """Sleep until an open question is answered; True when one was, or none is open."""
        still = [future for future in self._answers.values() if not future.done()]
        return not still or bool(wait(still, timeout_s, FIRST_COMPLETED).done)
