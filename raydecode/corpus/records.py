"""What the commit log says: records, and the state that is their fold.

Records are JSON objects, one file each, `_log/<number>.json`, numbered without holes:

| kind | meaning |
|---|---|
| job        | the configuration, the schema; `replaces` = everything before is void (`--overwrite`) |
| inputs     | files that join (their numbers, sizes, stamps) |
| attempt    | a process takes the log over; its number fences every lower one |
| engine     | a kind of engine that works on this output for the first time, with its promise (provenance.py) |
| commit     | parts, with the rows they cover |
| blame      | an engine died: who is under suspicion, how often each was tried |
| checkpoint | the fold so far, at every number divisible by 100: replay starts there |
| swept      | the files that `replaces` made void are gone |
| finish     | the job's summary |
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from raydecode.corpus.intervals import Cover, Span
from raydecode.errors import JobError

FORMAT = 2  # 2: has `engine` records; 1 is read as it is
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file, as the log knows it.

    number:         never reused within a job
    stamp:          etag, checksum or mtime: what tells a changed file
    size_positions: rows (Parquet) or bytes (all else)
    mtime:          of a local file; equal size and mtime spare reading it again
    staged:         path below the output of a Parquet copy that is read in its place (gz, multi-line CSV), or None
    """

    number: int
    path: str
    format: str
    size_bytes: int
    stamp: str
    size_positions: int
    staged: str | None = None
    mtime: float | None = None

    @property
    def span(self) -> Span:
        return Span(self.number, 0, self.size_positions)


@dataclass(frozen=True, slots=True)
class PartMeta:
    """One part as a commit record names it (about 300 bytes).

    name:    file name of the part, `part-<attempt>-<uuid>.parquet`; there is no file when rows = 0 (blank lines)
    weight:  rows, an unreadable span counted as the rows it stands for
    errors:  rows with an error, weighted in the same way
    cover:   the positions of the rows, and of the gaps between them that hold no row
    """

    name: str
    attempt: int
    rows: int
    samples: int
    tokens: int
    weight: int
    errors: int
    size_bytes: int
    sha256: str
    ids_sha256: str
    cover: Cover

    def moves(self) -> list[tuple[str, str]]:
        """(temporary, visible) path of each file. Side file first: a visible part always has its ids."""
        if self.rows == 0:
            return []
        folder, ids = temporary_folder(self.attempt), ids_name(self.name)
        return [(f"{folder}/{ids}", f"_ids/{ids}"), (f"{folder}/{self.name}", self.name)]

    def to_json(self) -> Record:
        out = {key: getattr(self, key) for key in self.__slots__}
        return out | {"cover": self.cover.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartMeta:
        return cls(**{**data, "cover": Cover.from_json(data["cover"])})


@dataclass(slots=True)
class State:
    """The fold of the records before `next`."""

    next: int = 0
    job_at: int = -1
    job: Record | None = None
    schema: str = ""
    inputs: list[InputFile] = field(default_factory=list)
    attempt: int = 0
    engines: list[Record] = field(default_factory=list)
    done: Cover = field(default_factory=Cover)
    rows: int = 0
    samples: int = 0
    tokens: int = 0
    weight: int = 0
    errors: int = 0
    parts: int = 0
    rerun: int = 0
    deaths: int = 0
    pending: dict[str, PartMeta] = field(default_factory=dict)  # committed, perhaps not yet visible
    hunt: list[list[Span]] = field(default_factory=list)
    condemned: list[Span] = field(default_factory=list)  # verdict fallen, error row not yet committed
    tries: dict[Span, int] = field(default_factory=dict)
    swept: bool = True
    summary: Record | None = None

    def apply(self, record: Record) -> None:
        """The next record. Raises JobError when it cannot follow: the log was edited or mixed with another."""
        match record["kind"]:
            case "job":
                if record["format"] > FORMAT:
                    raise JobError(
                        f"the log has format {record['format']}, this version reads up to {FORMAT}: upgrade raydecode"
                    )
                fresh = State(next=self.next, job_at=self.next, attempt=self.attempt, swept=self.job is None)
                for name in self.__slots__:
                    setattr(self, name, getattr(fresh, name))
                self.job, self.schema = record["job"], record["schema"]
                self.inputs = [InputFile(**one) for one in record["inputs"]]
            case "inputs":
                self.inputs += [InputFile(**one) for one in record["inputs"]]
                self.summary = None
            case "attempt":
                if record["attempt"] != self.attempt + 1:
                    raise JobError(f"log record {self.next}: attempt {record['attempt']} after {self.attempt}")
                self.attempt = record["attempt"]
                self.rerun += record.get("rerun", 0)
            case "engine":
                self._owner(record)
                self.engines.append(record["engine"])
            case "commit":
                self._owner(record)
                for one in record["parts"]:
                    self._commit(PartMeta.from_json(one))
            case "blame":
                self._owner(record)
                self.hunt = [[Span(*row) for row in group] for group in record["hunt"]]
                self.condemned = [Span(*row) for row in record["condemned"]]
                self.tries = {Span(*row): tries for *row, tries in record["tries"]}
                self.rerun += record["rerun"]
                self.deaths += 1
            case "checkpoint":
                self._restore(record["state"])
            case "swept":
                self.swept = True
            case "finish":
                self.summary = record["summary"]
                self.pending.clear()  # written after the last part was published
            case other:
                raise JobError(f"log record {self.next}: unknown kind {other!r}")
        self.next += 1

    def _owner(self, record: Record) -> None:
        if record["attempt"] != self.attempt:
            raise JobError(f"log record {self.next} is by attempt {record['attempt']}, but {self.attempt} had the log")

    def _commit(self, part: PartMeta) -> None:
        if self.done.intersect(part.cover):
            raise JobError(f"log record {self.next}: part {part.name} covers rows that were committed before")
        self.done.update(part.cover)
        self.rows += part.rows
        self.samples += part.samples
        self.tokens += part.tokens
        self.weight += part.weight
        self.errors += part.errors
        self.parts += 1
        self.summary = None
        if part.rows:
            self.pending[part.name] = part
        if self.hunt or self.tries:
            self.hunt = [left for group in self.hunt if (left := [row for row in group if not self.done.covers(row)])]
            self.condemned = [row for row in self.condemned if not self.done.covers(row)]
            self.tries = {row: n for row, n in self.tries.items() if not self.done.covers(row)}

    _COUNTS = (
        "job_at",
        "attempt",
        "rows",
        "samples",
        "tokens",
        "weight",
        "errors",
        "parts",
        "rerun",
        "deaths",
        "swept",
        "summary",
    )

    def checkpoint(self, unpublished: Sequence[PartMeta]) -> Record:
        """Everything but the job's own text, which stays in record `job_at` and in `inputs` records."""
        return {
            **{name: getattr(self, name) for name in self._COUNTS},
            "job": self.job,
            "schema": self.schema,
            "inputs": [asdict(one) for one in self.inputs],
            "engines": self.engines,
            "done": self.done.to_json(),
            "pending": [part.to_json() for part in unpublished],
            **suspicion(self.hunt, self.condemned, self.tries),
        }

    def _restore(self, saved: Record) -> None:
        for name in self._COUNTS:
            setattr(self, name, saved[name])
        self.job, self.schema = saved["job"], saved["schema"]
        self.inputs = [InputFile(**one) for one in saved["inputs"]]
        self.engines = list(saved.get("engines", ()))
        self.done = Cover.from_json(saved["done"])
        self.pending = {one["name"]: PartMeta.from_json(one) for one in saved["pending"]}
        self.hunt = [[Span(*row) for row in group] for group in saved["hunt"]]
        self.condemned = [Span(*row) for row in saved["condemned"]]
        self.tries = {Span(*row): tries for *row, tries in saved["tries"]}


def suspicion(hunt: Sequence[Sequence[Span]], condemned: Sequence[Span], tries: Mapping[Span, int]) -> Record:
    """Who is under suspicion, as JSON."""
    return {
        "hunt": [[[r.input, r.start, r.stop] for r in group] for group in hunt],
        "condemned": [[r.input, r.start, r.stop] for r in condemned],
        "tries": [[r.input, r.start, r.stop, n] for r, n in tries.items()],
    }


def temporary_folder(attempt: int) -> str:
    """Where attempt n writes. Recovery of attempt n deletes only in folders of lower attempts, so a stopped old
    process that wakes in its recovery cannot delete what a newer one is writing."""
    return f"_tmp/{attempt:06d}"


def ids_name(part: str) -> str:
    return part.removesuffix(".parquet") + ".ids"


def schema_to_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
