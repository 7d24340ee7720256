"""Is an output what its log says? Re-reads everything and trusts nothing: `raydecode verify OUT`.

Checked: the log replays; every committed part is there with its size, hash and schema; its rows' positions lie in its
cover, each once; its ids match their side file; no file is visible that the log does not name; the covers are disjoint
and together the whole of every input; input files are what they were; no id names two rows.

Memory: one part's columns at a time, and one chunk of each side file in a k-way merge of the sorted id hashes
(10^5 parts are merged in rounds of 256 through a temporary file).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydecode.corpus.discover import discover
from raydecode.corpus.history import made, parts_of
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.parts import id_hashes
from raydecode.corpus.provenance import difference
from raydecode.corpus.records import PartMeta, State, ids_name
from raydecode.corpus.storage import Storage
from raydecode.errors import RaydecodeError

_FAN_IN = 256
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. severity "error": the output is damaged or incomplete; "note": worth knowing."""

    severity: str
    what: str
    where: str


@dataclass(slots=True)
class Verification:
    rows: int = 0
    samples: int = 0
    parts: int = 0
    errors: int = 0
    missing: int = 0  # positions not committed
    duplicate_ids: int = 0
    finished: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(one.severity == "error" for one in self.findings)


def verify(storage: Storage, *, inputs: bool = True) -> Verification:
    """Check an output folder. `inputs`: also compare the input files with what was read."""
    state = made(storage)
    out = Verification(finished=state.summary is not None)
    cover, names, schema = Cover(), set(), None
    for part in parts_of(storage, state.job_at):
        out.parts += 1
        if cover.intersect(part.cover):
            _error(out, "covers rows of an earlier part", part.name)
        cover.update(part.cover)
        if part.rows:
            names.add(part.name)
            schema = _check_part(storage, part, schema, out)
    _check_folder(storage, state, names, out)
    if (mixed := difference(state.engines)) is not None:
        out.findings.append(Finding("note", mixed, storage.url))
    _check_cover(state, cover, out)
    if inputs:
        _check_inputs(state, cover, out)
    out.duplicate_ids = _count_duplicates(storage, sorted(names))
    if out.duplicate_ids:
        out.findings.append(
            Finding("note", f"{out.duplicate_ids} rows share their id with an earlier row; each was kept", storage.url)
        )
    if state.hunt or state.condemned:
        out.findings.append(
            Finding("note", "rows are under suspicion of killing engines; the next run goes on with them", storage.url)
        )
    return out


def _check_part(storage: Storage, part: PartMeta, schema: pa.Schema | None, out: Verification) -> pa.Schema | None:
    try:
        data = storage.read(part.name)
    except FileNotFoundError:
        where = "still under _tmp; start the job again to publish it" if storage.exists(part.moves()[1][0]) else "gone"
        _error(out, f"committed part is not there ({where})", part.name)
        return schema
    if hashlib.sha256(data).hexdigest() != part.sha256:
        _error(out, f"bytes differ from what was committed ({len(data)} bytes, {part.size_bytes} expected)", part.name)
        return schema
    table = pq.read_table(pa.BufferReader(data))
    out.samples += table.num_rows
    out.errors += table.num_rows - table["error"].null_count
    keys = table.select(["_input", "_key"]).group_by(["_input", "_key"]).aggregate([([], "count_all")])
    out.rows += keys.num_rows
    if keys.num_rows != part.rows or table.num_rows != part.samples:
        _error(
            out, f"{keys.num_rows} rows, {table.num_rows} samples; the log says {part.rows}, {part.samples}", part.name
        )
    if len(pc.unique(_pairs(table))) != table.num_rows:
        _error(out, "a sample of a row occurs twice", part.name)
    for number, key in zip(keys["_input"].to_pylist(), keys["_key"].to_pylist(), strict=True):
        if not _has(part.cover, number, key):
            _error(out, f"holds row {number}:{key}, which its cover does not have", part.name)
            break
    _check_ids(storage, part, table, out)
    if schema is not None and not table.schema.equals(schema):
        _error(out, "schema differs from the other parts", part.name)
    return schema or table.schema


def _check_ids(storage: Storage, part: PartMeta, table: pa.Table, out: Verification) -> None:
    name = f"_ids/{ids_name(part.name)}"
    try:
        data = storage.read(name)
    except FileNotFoundError:
        _error(out, "side file of ids is not there", name)
        return
    first = table.group_by(["_input", "_key"]).aggregate([("id", "min")])
    if hashlib.sha256(data).hexdigest() != part.ids_sha256 or id_hashes(first["id_min"].to_pylist()).tobytes() != data:
        _error(out, "ids differ from those of the part", name)


def _check_folder(storage: Storage, state: State, names: set[str], out: Verification) -> None:
    for path in storage.list(""):
        folder, _, name = path.rpartition("/")
        if not folder and name.endswith(".parquet") and name not in names:
            _error(out, "a Parquet file that the log does not name: readers of the folder will see its rows", path)
    if state.pending:
        lost = [name for name in state.pending if not storage.exists(name)]
        if lost:
            _error(out, f"{len(lost)} committed parts are not visible yet", lost[0])


def _check_cover(state: State, cover: Cover, out: Verification) -> None:
    if cover != state.done:
        _error(out, "the parts do not add up to the log's cover", "_log")
    missing = [span for file in state.inputs for span in cover.missing(file.span)]
    out.missing = sum(span.size for span in missing)
    if missing:
        names = {file.number: file.path for file in state.inputs}
        where = ", ".join(f"{names[s.input]} [{s.start}, {s.stop})" for s in missing[:3])
        severity = "error" if out.finished else "note"
        out.findings.append(Finding(severity, f"{out.missing} positions are not done yet", where))


def _check_inputs(state: State, cover: Cover, out: Verification) -> None:
    for file in state.inputs:
        try:
            discover(file.path, format=file.format, known=[file], done=cover)
        except RaydecodeError as error:
            out.findings.append(Finding("note", str(error).splitlines()[0], file.path))


def _count_duplicates(storage: Storage, names: Sequence[str]) -> int:
    runs: list[Iterable[np.ndarray]] = [_Run(storage, f"_ids/{ids_name(name)}") for name in names]
    with tempfile.TemporaryDirectory(prefix="raydecode-verify-") as folder:
        step = 0
        while len(runs) > _FAN_IN:
            merged: list[Iterable[np.ndarray]] = []
            for at in range(0, len(runs), _FAN_IN):
                step += 1
                path = os.path.join(folder, str(step))
                with open(path, "wb") as file:
                    file.writelines(chunk.tobytes() for chunk in _merge(runs[at : at + _FAN_IN]))
                merged.append(_FileRun(path))
            runs = merged
        doubled, last = 0, None
        for chunk in _merge(runs):
            doubled += int((chunk[1:] == chunk[:-1]).sum()) + int(
                last is not None and len(chunk) > 0 and chunk[0] == last
            )
            last = chunk[-1] if len(chunk) else last
    return doubled


@dataclass(frozen=True, slots=True)
class _Run:
    """The sorted hashes of one part: at most 64 MiB of rows, so 8 bytes each are small."""

    storage: Storage
    path: str

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            data = self.storage.read(self.path)
        except FileNotFoundError:
            return
        whole = np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8")
        for at in range(0, len(whole), _CHUNK):
            yield whole[at : at + _CHUNK]


@dataclass(frozen=True, slots=True)
class _FileRun:
    path: str

    def __iter__(self) -> Iterator[np.ndarray]:
        with open(self.path, "rb") as file:
            while data := file.read(_CHUNK * 8):
                yield np.frombuffer(data, dtype="<u8")


def _merge(runs: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Sorted chunks of the union. Each round passes on what no later chunk of any run can precede."""
    sources = [iter(run) for run in runs]
    heads: list[np.ndarray | None] = [next(source, None) for source in sources]
    while any(head is not None for head in heads):
        limit = min(head[-1] for head in heads if head is not None)
        ready = []
        for i, head in enumerate(heads):
            if head is None:
                continue
            cut = int(np.searchsorted(head, limit, side="right"))
            ready.append(head[:cut])
            heads[i] = head[cut:] if cut < len(head) else next(sources[i], None)
        yield np.sort(np.concatenate(ready), kind="stable")


def _pairs(table: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(
        table["_input"].cast(pa.string()), table["_key"].cast(pa.string()), table["sample"].cast(pa.string()), ":"
    ).combine_chunks()


def _has(cover: Cover, number: int, key: int) -> bool:
    return cover.overlaps(Span(number, key, key + 1))


def _error(out: Verification, what: str, where: str) -> None:
    out.findings.append(Finding("error", what, where))
