"""A batch as a few records, each created exclusively and never changed; its state is what they say.

    batches/<id>.created     what was asked
    batches/<id>.started     the file was read through: how many lines
    batches/<id>.cancelling  somebody cancelled it
    batches/<id>.finalizing  no row is run any more, why, and what the result files are called
    batches/<id>.ended       completed, cancelled, expired or failed; counts, files

Nothing is ever overwritten, so every process that sees the folder or bucket can answer for every batch, and of two that
would end one differently the first wins. Progress between `started` and `ended` is read from the batch's commit log.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raydecode.corpus.history import replay
from raydecode.corpus.records import State
from raydecode.corpus.storage import open_storage
from serve_app.batches.files import Unwritable

Record = dict[str, Any]
_ID = re.compile(r"batch_[0-9a-f]{32}")
KINDS = ("created", "started", "cancelling", "finalizing", "ended")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its records tell it. done: committed rows (of them errors) while it runs."""

    id: str
    created: Record
    started: Record | None = None
    cancelling: Record | None = None
    finalizing: Record | None = None
    ended: Record | None = None
    done: int = 0
    errors: int = 0

    @property
    def status(self) -> str:
        if self.ended is not None:
            return str(self.ended["status"])
        if self.finalizing is not None and self.finalizing["why"] != "cancelled":
            return "finalizing"
        if self.cancelling is not None:
            return "cancelling"
        return "validating" if self.started is None else "in_progress"

    @property
    def expires_at(self) -> int:
        return int(self.created["at"]) + int(self.created["window_s"])

    def to_json(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        ended = self.ended or {}
        total = int((self.started or {}).get("total", 0))
        counts = ended.get("counts") or {"total": total, "completed": self.done - self.errors, "failed": self.errors}
        at = {name: (getattr(self, name) or {}).get("at") for name in ("started", "cancelling", "finalizing")}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.created["endpoint"],
            "model": (self.started or {}).get("model"),
            "errors": {"object": "list", "data": ended["errors"]} if ended.get("errors") else None,
            "input_file_id": self.created["input_file_id"],
            "completion_window": self.created["completion_window"],
            "status": self.status,
            "output_file_id": ended.get("output_file_id"),
            "error_file_id": ended.get("error_file_id"),
            "created_at": self.created["at"],
            "in_progress_at": at["started"],
            "expires_at": self.expires_at,
            "finalizing_at": at["finalizing"],
            **{f"{name}_at": ended["at"] if self.status == name else None
               for name in ("completed", "failed", "expired", "cancelled")},
            "cancelling_at": at["cancelling"],
            "request_counts": counts,
            "usage": ended.get("usage"),
            "metadata": self.created["metadata"],
        }  # fmt: skip


@dataclass(slots=True)
class _Known:
    """What was read of a batch: its records, and its commit log as far as it went."""

    records: dict[str, Record] = field(default_factory=dict)
    log: State = field(default_factory=State)
    reading: threading.Lock = field(default_factory=threading.Lock)


class BatchStore:
    """The batches of one service. url: where its files are, too. Every call waits for the storage."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.url = url.rstrip("/")
        self.storage = open_storage(f"{self.url}/batches")
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def create(
        self, *, input_file_id: str, endpoint: str, completion_window: str, window_s: int,
        metadata: Mapping[str, str] | None, owner: str = "", output_expires_after_s: int | None = None,
    ) -> Batch:  # fmt: skip
        id = f"batch_{secrets.token_hex(16)}"
        self.put(
            id, "created", input_file_id=input_file_id, endpoint=endpoint, completion_window=completion_window,
            window_s=window_s, metadata=dict(metadata) if metadata is not None else None, owner=owner,
            output_expires_after_s=output_expires_after_s,
        )  # fmt: skip
        found = self.get(id)
        assert found is not None, "it was just created"
        return found

    def put(self, id: str, kind: str, **said: Any) -> Record:
        """Add a record; when there is one of its kind, that one holds. Returns the one that does."""
        assert kind in KINDS
        record = {"at": int(self._clock()), **said}
        try:
            self.storage.create_exclusive(f"{id}.{kind}", json.dumps(record).encode())
        except FileExistsError:
            record = json.loads(self.storage.read(f"{id}.{kind}"))
        except OSError as error:
            raise Unwritable(self.storage.url, error) from error
        self._known.setdefault(id, _Known()).records[kind] = record
        return record

    def get(self, id: str, owner: str | None = None) -> Batch | None:
        """The batch as it stands, or None: unknown, or another's (owner None sees all)."""
        if not _ID.fullmatch(id):
            return None
        known = self._known.setdefault(id, _Known())
        records = known.records
        if "ended" not in records:
            for kind in KINDS:
                if kind not in records:
                    try:
                        records[kind] = json.loads(self.storage.read(f"{id}.{kind}"))
                    except FileNotFoundError:
                        if kind == "created":
                            self._known.pop(id, None)  # another thread may have been here
                            return None
        if owner is not None and records["created"]["owner"] != owner:
            return None
        if "started" in records and "ended" not in records:
            with known.reading:
                replay(open_storage(self.rows(id)), known.log)
        later = {kind: records.get(kind) for kind in KINDS[1:]}
        return Batch(id, records["created"], **later, done=known.log.rows, errors=known.log.errors)

    def all(self, owner: str | None = None) -> list[Batch]:
        """Every batch, the newest first."""
        names = (path.rpartition("/")[2] for path in self.storage.list(""))
        ids = (name.removesuffix(".created") for name in names if name.endswith(".created"))
        found = [batch for id in ids if (batch := self.get(id, owner))]
        return sorted(found, key=lambda batch: (batch.created["at"], batch.id), reverse=True)

    def rows(self, id: str) -> str:
        """Where the batch's rows and its commit log lie."""
        return f"{self.url}/rows/{id}"
