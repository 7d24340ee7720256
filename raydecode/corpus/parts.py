"""Parts: how a worker's finished rows become a file that a commit record can name.

A part is written whole under `_tmp/<attempt>/`, with a side file of its rows' ids as sorted 64-bit hashes
(blake2b, little endian), and is invisible until the ledger commits it. Nothing here decides anything: a part that is
refused or forgotten is deleted by the next start.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.log import Fenced
from raydecode.corpus.messages import Lease, Suspects
from raydecode.corpus.records import PartMeta, ids_name, temporary_folder
from raydecode.corpus.rows import Finished, OutputSchema, Sample, block_errors, block_spans
from raydecode.corpus.storage import Storage

FLUSH_S = 60.0
FLUSH_BYTES = 64 << 20


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """Sorted 64-bit hashes. Two different ids of 10^7 share one with probability 3e-6."""
    raw = b"".join(hashlib.blake2b(one.encode("utf-8", "replace"), digest_size=8).digest() for one in ids)
    return np.sort(np.frombuffer(raw, dtype="<u8"))


def write_part(storage: Storage, attempt: int, schema: OutputSchema, rows: Sequence[Finished], gaps: Cover) -> PartMeta:
    """Write `rows` as one part of `attempt`. `gaps`: further cover that holds no row."""
    cover = gaps.copy()
    for row in rows:
        cover.add(row.span)
    if not rows:
        return PartMeta(f"gap-{attempt:06d}-{uuid.uuid4().hex}", attempt, 0, 0, 0, 0, 0, 0, "", "", cover)
    table = schema.table(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    ids = id_hashes(row.block["_id"][row.index].as_py() for row in rows).tobytes()
    name = f"part-{attempt:06d}-{uuid.uuid4().hex}.parquet"
    folder = temporary_folder(attempt)
    try:
        storage.write(f"{folder}/{ids_name(name)}", ids)
        storage.write(f"{folder}/{name}", data)
    except FileNotFoundError as error:  # a newer attempt deletes what ours had not committed, this file as well
        raise Fenced(f"{storage.url}/{folder} is being cleaned up: another run took over") from error
    failed = pc.is_valid(table["error"]).to_numpy()
    weights, errors = _weigh(rows, failed)
    tokens = sum(n for row in rows for s in row.samples if isinstance(n := s.columns.get("output_tokens"), int))
    return PartMeta(
        name=name,
        attempt=attempt,
        rows=len(rows),
        samples=table.num_rows,
        tokens=tokens,
        weight=weights,
        errors=errors,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        ids_sha256=hashlib.sha256(ids).hexdigest(),
        cover=cover,
    )


class PartBuilder:
    """One worker's buffer of finished rows.

        table = builder.lease(lease, block)      the rows to run; faulty rows are finished already
        builder.add(span, samples)               a row left the engine
        if builder.full() or idle: meta = builder.flush()   then ledger.commit(worker, [meta])

    Memory: at most about `flush_bytes` of finished rows, and the blocks whose rows are still waiting or running.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: int,
        schema: OutputSchema,
        clock: Callable[[], float],
        *,
        flush_s: float = FLUSH_S,
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        self._storage, self._attempt, self._schema, self._clock = storage, attempt, schema, clock
        self._flush_s, self._flush_bytes = flush_s, flush_bytes
        self._open: dict[Span, tuple[pa.Table, int, int]] = {}  # leased, not finished
        self._done: list[Finished] = []
        self._gaps = Cover()
        self._bytes = 0
        self._since: float | None = None

    def lease(self, lease: Lease | Suspects, block: pa.Table) -> pa.Table:
        """The rows of `block` that the lease gives, in order; `block` holds every row of the lease.

        Rows outside the lease are dropped. Positions of the lease without a row become cover of the next part.
        Rows whose `_error` is set do not come back: they are finished.
        """
        todo = Cover(lease.todo if isinstance(lease, Lease) else lease.rows)
        spans, faults = block_spans(block), block_errors(block)
        if isinstance(lease, Lease) and lease.fault is not None:
            faults = [lease.fault] * len(spans)
        row_bytes = block.nbytes // max(1, block.num_rows)  # once: nbytes of a sliced table walks its buffers
        keep: list[int] = []
        gaps = todo.copy()
        for i, (span, fault) in enumerate(zip(spans, faults, strict=True)):
            if not todo.covers(span):
                continue
            gaps.remove(span)
            self._open[span] = (block, i, row_bytes)
            if fault is None:
                keep.append(i)
            else:
                self.add(span, [Sample(error=fault)])
        if gaps:
            self._touch(0)
            self._gaps.update(gaps)
        return block if len(keep) == block.num_rows else block.take(pa.array(keep, pa.int64()))

    def add(self, span: Span, samples: Sequence[Sample]) -> None:
        """A row is finished, with all its samples."""
        block, index, row_bytes = self._open.pop(span)
        self._done.append(Finished(span, block, index, tuple(samples)))
        self._touch(row_bytes + sum(_size(v) for s in samples for v in s.columns.values()))

    def drop(self, spans: Iterable[Span]) -> None:
        """Rows that were given back to the ledger before they started."""
        for span in spans:
            self._open.pop(span, None)

    def full(self) -> bool:
        """Time to flush: the oldest buffered row is `flush_s` old, or the buffer holds `flush_bytes`."""
        return self._since is not None and (
            self._bytes >= self._flush_bytes or self._clock() - self._since >= self._flush_s
        )

    def buffered(self) -> bool:
        """Anything to flush?"""
        return self._since is not None

    def flush(self) -> PartMeta | None:
        """Write what is buffered. None when there is nothing. The buffer is empty afterwards, even if it raises:
        the worker must then end, and its rows run again."""
        if self._since is None:
            return None
        rows, gaps = self._done, self._gaps
        self._done, self._gaps, self._bytes, self._since = [], Cover(), 0, None
        return write_part(self._storage, self._attempt, self._schema, rows, gaps)

    def _touch(self, size: int) -> None:
        self._bytes += size
        if self._since is None:
            self._since = self._clock()


def _weigh(rows: Sequence[Finished], failed: np.ndarray) -> tuple[int, int]:
    """(weight of all rows, weight of those with an error in any sample)"""
    weight, errors, at = 0, 0, 0
    for row in rows:
        size = max((s.error.weight for s in row.samples if s.error), default=1)
        weight += size
        errors += size * bool(failed[at : at + len(row.samples)].any())
        at += len(row.samples)
    return weight, errors


def _size(value: object) -> int:
    match value:
        case str() | bytes():
            return len(value)
        case list() | tuple():
            return 8 * len(value)
    return 8
