"""The smallest job over a `Log`: 20 rows in parts of 2, cut so that covers interleave; used by every crash harness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import InputFile, PartMeta, temporary_folder
from raydecode.corpus.storage import Storage

N, UNIT = 20, 4
JOB = {"model": "toy", "decoding": {"seed": 7, "max_tokens": 4}}
INPUTS = [InputFile(0, "in.parquet", "parquet", 100, "stamp", N)]
OWNER = Owner("host", 1, "born")


def open_log(storage: Storage, kind: type[Log] = Log, **options: object) -> Log:
    arguments = {"job": JOB, "inputs": INPUTS, "schema": "", "now": lambda: 0.0, "owner": OWNER, "takeover": True}
    return kind.open(storage, **(arguments | options))  # type: ignore[arg-type]


def write(storage: Storage, attempt: int, rows: list[int], tag: Callable[[], str]) -> PartMeta:
    data = json.dumps([[k, f"out {k}"] for k in rows]).encode()
    ids = json.dumps(rows).encode()
    name = f"part-{attempt:06d}-{tag()}.parquet"
    try:
        storage.write(f"{temporary_folder(attempt)}/{name.removesuffix('.parquet')}.ids", ids)
        storage.write(f"{temporary_folder(attempt)}/{name}", data)
    except FileNotFoundError as error:  # as `parts.write_part`
        raise Fenced(str(error)) from error
    cover = Cover(Span(0, k, k + 1) for k in rows)
    shas = hashlib.sha256(data).hexdigest(), hashlib.sha256(ids).hexdigest()
    return PartMeta(name, attempt, len(rows), len(rows), 0, len(rows), 0, len(data), *shas, cover)


def run(storage: Storage, tag: Callable[[], str], kind: type[Log] = Log, **options: object) -> Log:
    """Open, do what is missing, finish."""
    log = open_log(storage, kind, **options)
    for start in range(0, N, UNIT):
        todo = [k for k in range(start, start + UNIT) if not log.state.done.covers(Span(0, k, k + 1))]
        for rows in (todo[::2], todo[1::2]):
            if rows:
                log.commit([write(storage, log.attempt, rows, tag)])
    if log.state.summary is None:
        log.finish({"ok": True})
    return log


def visible(storage: Storage) -> dict[str, bytes]:
    """The part files that a reader of the folder sees."""
    return {p: storage.read(p) for p in storage.list("") if "/" not in p and p.endswith(".parquet")}


def check_visible(storage: Storage) -> list[int]:
    """Rows a reader sees: whole files only, every text right. Raises AssertionError."""
    rows = [row for data in visible(storage).values() for row in json.loads(data)]
    assert all(text == f"out {k}" for k, text in rows), "wrong bytes"
    keys = sorted(k for k, _ in rows)
    assert len(keys) == len(set(keys)), f"doubled: {keys}"
    return keys


def check_complete(storage: Storage) -> None:
    assert check_visible(storage) == list(range(N))
    left = [p for p in storage.list("") if p.startswith("_tmp/") or p.endswith(".tmp")]
    assert not left, left
    ids = [p for p in storage.list("_ids") if p.endswith(".ids")]
    assert len(ids) == len(visible(storage))
