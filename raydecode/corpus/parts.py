"""Parts: what an actor writes, and the check of a finished output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.rows import OutputSchema, RowResult
from raydecode.corpus.storage import Storage

if TYPE_CHECKING:
    from raydecode.corpus.ledger import Lease, Suspects


@dataclass(frozen=True, slots=True)
class PartMeta:
    """One line of a commit record. `name` is None for cover without rows (blank lines)."""

    name: str | None
    attempt: int
    rows: int
    samples: int
    tokens: int
    errors: int  # weighted
    size_bytes: int
    sha256: str
    ids_sha256: str
    cover: Cover


class PartBuilder:
    """Buffers finished rows of one worker and writes them as a part: the actor's side of a commit.

    lease(lease, table) -> the rows to run;  add(result);  full(now);  flush() -> PartMeta | None
    """

    def __init__(self, storage: Storage, attempt: int, schema: OutputSchema, clock: Callable[[], float],
                 flush_s: float = 60.0, flush_bytes: int = 64 << 20) -> None: ...

    def lease(self, lease: Lease | Suspects, table: pa.Table) -> pa.Table: ...
    def add(self, result: RowResult) -> None: ...
    def full(self) -> bool: ...
    def flush(self) -> PartMeta | None: ...
