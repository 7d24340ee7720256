"""Who a row is for its user and for the random draw: the given id, or content hash + occurrence in its file.

    given column     str(value)
    no column        blake2b-128 of the row's canonical JSON (sorted keys, no nulls), hexadecimal; the second row of
                     the file with the same content gets "-1", the third "-2", ...

The text drawn for a row depends on this id, so the id must not depend on sharding, resume or order of work. Content
alone does not; the occurrence needs the file's earlier rows. It is therefore counted in a pass of its own, one reader
per file, before any unit of the file is read (`index_occurrences`), and stored as the rows that repeat: position and
occurrence, sorted. Almost always that list is empty. Files up to SMALL bytes are counted by each reader when it opens
them, and need no pass.

Shuffling a file permutes equal rows among themselves: the set of (id, text) stays the same.
Memory of the pass: 16 bytes for each of up to SPILL rows, beyond that 1/256 of the rows at a time; plus the list.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

SMALL = 4 << 20
SPILL = 4 << 20
_BUCKETS = 256
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode
_PAIR = np.dtype([("hash", "<u8"), ("position", "<i8")])


def content_id(row: Mapping[str, Any]) -> str:
    """The same for the same content in JSONL, CSV and Parquet, as far as the values are equal."""
    kept = {key: value for key, value in row.items() if value is not None}
    return _digest(_canonical(kept).encode())


def bytes_id(line: bytes) -> str:
    """For a line that cannot be parsed."""
    return _digest(line)


def repeats(rows: Iterable[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(positions, occurrences >= 1), sorted by position, of the rows whose id came before in the file.

    `rows`: (position, content id) by ascending position.
    """
    chunk: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="raydecode-ids-") as folder:
        spilled = False
        for position, digest in rows:
            chunk.append((int(digest[:16], 16), position))
            if len(chunk) >= SPILL:
                _spill(folder, np.array(chunk, dtype=_PAIR))
                spilled = True
                chunk = []
        pairs = np.array(chunk, dtype=_PAIR)
        if not spilled:
            found = [_repeats_of(pairs)]
        else:
            _spill(folder, pairs)
            found = [_repeats_of(bucket) for bucket in _buckets(folder)]
    positions = np.concatenate([one[0] for one in found])
    occurrences = np.concatenate([one[1] for one in found])
    order = np.argsort(positions)
    return positions[order], occurrences[order]


def with_occurrence(digest: str, occurrence: int) -> str:
    return f"{digest}-{occurrence}" if occurrence else digest


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _spill(folder: str, pairs: np.ndarray) -> None:
    bucket = (pairs["hash"] >> np.uint64(56)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    edges = np.searchsorted(bucket[order], np.arange(_BUCKETS + 1))
    for i in range(_BUCKETS):
        if edges[i] < edges[i + 1]:
            with open(os.path.join(folder, f"{i:03d}"), "ab") as file:
                file.write(pairs[order[edges[i] : edges[i + 1]]].tobytes())


def _buckets(folder: str) -> Iterator[np.ndarray]:
    for name in sorted(os.listdir(folder)):
        yield np.fromfile(os.path.join(folder, name), dtype=_PAIR)


def _repeats_of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((pairs["position"], pairs["hash"]))
    hashes, positions = pairs["hash"][order], pairs["position"][order]
    first = np.ones(len(hashes), dtype=bool)
    first[1:] = hashes[1:] != hashes[:-1]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(hashes)), 0))
    occurrences = np.arange(len(hashes)) - starts
    again = occurrences > 0
    return positions[again].astype(np.int64), occurrences[again].astype(np.int32)
