"""The log as readers see it: replay, records, parts, the answer of a finished job. Writes nothing.

It is learned by reading v, v + 1, ... until a number is missing, from the last checkpoint (found by doubling and
halving over the numbers divisible by 100), never by listing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raydecode.corpus.records import InputFile, PartMeta, Record, State
from raydecode.corpus.storage import Storage
from raydecode.errors import JobError, UserError

CHECKPOINT = 100


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished job, as the log tells it without reading a row."""

    rows: int
    samples: int
    tokens: int
    errors: int
    parts: int
    rows_rerun: int
    details: Record


def replay(storage: Storage, state: State | None = None) -> State:
    """The state of a log. A given state is read on from where it stands. Writes nothing."""
    state = state or State()
    if state.next == 0:
        last = _last_checkpoint(storage)
        if last:
            state.next = last
    for record in records(storage, state.next):
        state.apply(record)
    return state


def made(storage: Storage) -> State:
    """The state of an output's log; UserError where there is no output."""
    state = replay(storage)
    if state.job is None:
        raise UserError(
            f"no raydecode output here: {storage.url} has no log", field="output", value=storage.url,
            hint="give the folder named by output.path of a generate job",
        )  # fmt: skip
    return state


def records(storage: Storage, start: int = 0, stop: int | None = None) -> Iterator[Record]:
    number = start
    while stop is None or number < stop:
        try:
            data = storage.read(record_name(number))
        except FileNotFoundError:
            return
        try:
            yield json.loads(data)
        except ValueError as error:
            raise JobError(f"{storage.url}/{record_name(number)} is damaged: {error}") from error
        number += 1


def parts_of(storage: Storage, start: int, stop: int | None = None) -> Iterator[PartMeta]:
    """Every part that the records [start, stop) commit."""
    for record in records(storage, start, stop):
        if record["kind"] == "commit":
            yield from (PartMeta.from_json(one) for one in record["parts"])


def finished(
    storage: Storage, job: Mapping[str, object] | None = None, inputs: Sequence[InputFile] | None = None
) -> Summary | None:
    """The summary of a finished job, else None. With `job`: a differing one is refused. With `inputs`: files that
    the log does not know make it unfinished. Reads the log's tail only: no Ray, no rows."""
    state = replay(storage)
    if state.job is None:
        return None
    if job is not None:
        refuse_difference(storage.url, state.job, json.loads(json.dumps(job)))
    if state.summary is None or (inputs is not None and {i.number for i in inputs} - {i.number for i in state.inputs}):
        return None
    return Summary(state.rows, state.samples, state.tokens, state.errors, state.parts, state.rerun, state.summary)


def record_name(number: int) -> str:
    return f"_log/{number:012d}.json"


def refuse_difference(url: str, old: Record, new: Record) -> None:
    """UserError that shows each differing key when the output was made by another job."""
    a, b = _flat(old), _flat(new)
    keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if not keys:
        return
    lines = [f"  {key}: {_short(a, key)} -> {_short(b, key)}" for key in keys]
    raise UserError(
        "the output holds rows of another configuration:\n" + "\n".join(lines),
        field="output.path",
        value=url,
        hint="choose a new output.path, or pass --overwrite to void what is there",
    )


def _flat(value: object, at: str = "") -> dict[str, object]:
    match value:
        case dict() if value:
            return {
                k: v for key, one in value.items() for k, v in _flat(one, f"{at}.{key}" if at else str(key)).items()
            }
        case list() if value:
            return {k: v for i, one in enumerate(value) for k, v in _flat(one, f"{at}[{i}]").items()}
    return {at: value}


def _short(flat: Mapping[str, object], key: str) -> str:
    if key not in flat:
        return "(not set)"
    text = json.dumps(flat[key], ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def _last_checkpoint(storage: Storage) -> int:
    """The highest existing record number divisible by CHECKPOINT, 0 when there is none above it. O(log v) calls."""

    def there(k: int) -> bool:
        return storage.exists(record_name(k * CHECKPOINT))

    if not there(1):
        return 0
    low, high = 1, 2
    while there(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle) else (low, middle)
    return low * CHECKPOINT
