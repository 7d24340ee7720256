"""Files: bytes under `content/`, and a record beside them that makes them a file.

    content/<id>-<try>   the bytes, in a name of this try's own; torn after a crash perhaps, and nobody knows of them
    meta/<id>.json       created exclusively behind them, names them, never changed: from here on the file exists

So a reader never sees half a file, a server that dies leaves nothing that counts, and any number of processes may serve
one folder or bucket, and may make one file at once: the first record holds, and no other try touches its bytes. Ids
are 128 random bits: who knows one was told it. `owner` (the name of an API key) keeps the files of one key from the
lists and look-ups of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from raydecode.corpus.discover import filesystem
from raydecode.corpus.disk import OsDisk
from raydecode.corpus.storage import LocalStorage, is_full, open_storage, prepare
from raydecode.errors import RaydecodeError, UserError

CHUNK = 1 << 20
_ID = re.compile(r"file-[0-9a-f]{32}")


class TooLarge(RaydecodeError):
    """More bytes than a file may have."""


class Unwritable(RaydecodeError):
    """The folder or bucket takes nothing more. full: because there is no room."""

    def __init__(self, url: str, error: BaseException) -> None:
        self.full = is_full(error)
        what = "the disk is full" if self.full else f"{type(error).__name__}: {error}"
        super().__init__(f"files cannot be written to {url}: {what}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's record. content: where its bytes are; expires_at: Unix seconds after which it counts as gone, or None"""

    id: str
    content: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    owner: str = ""
    expires_at: int | None = None

    def to_json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        shown = {name: value for name, value in asdict(self).items() if name not in ("owner", "content")}
        return {"object": "file", "status": "processed", "status_details": None} | shown


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


class FileStore:
    """The files of one service. url: a folder, or a bucket that fsspec opens.

    Every call waits for the storage: call it from a thread.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.storage = open_storage(f"{url.rstrip('/')}/files")
        self._fs, self._root = filesystem(self.storage.url)
        self._clock = clock
        self._known: dict[str, StoredFile] = {}  # records never change; a deletion elsewhere is looked for

    def create(
        self, chunks: Iterable[bytes], *, filename: str, purpose: str, owner: str = "",
        expires_after_s: int | None = None, most: int | None = None, id: str | None = None, at: float | None = None,
    ) -> StoredFile:  # fmt: skip
        """Store the chunks as a file. With `id` and `at`: the same file again is no second one.

        Raises TooLarge beyond `most` bytes, and Unwritable.
        """
        if id is not None and (there := self.get(id, expired=True)):
            return there
        id, now = id or new_file_id(), int(self._clock() if at is None else at)
        content = f"content/{id}-{secrets.token_hex(8)}"
        try:
            size = self._write(content, chunks, most)
        except OSError as error:
            self._discard(content)
            raise Unwritable(self.storage.url, error) from error
        except BaseException:  # TooLarge, or what the chunks raise
            self._discard(content)
            raise
        expires_at = None if expires_after_s is None else now + expires_after_s
        file = StoredFile(id, content, size, now, filename, purpose, owner, expires_at)
        try:
            self.storage.create_exclusive(_meta(id), json.dumps(asdict(file)).encode())
        except OSError as error:
            there = None
            with contextlib.suppress(OSError):  # without an answer the bytes stay: a record may name them
                there = self.get(id, expired=True)
                if there is None or there.content != content:
                    self._discard(content)
            if isinstance(error, FileExistsError) and there is not None:
                return there
            raise Unwritable(self.storage.url, error) from error
        return file

    def get(self, id: str, owner: str | None = None, *, expired: bool = False) -> StoredFile | None:
        """The file, or None: unknown, deleted, another's (owner None sees all), or expired (unless `expired`)."""
        if not _ID.fullmatch(id):
            return None
        file = self._known.get(id)
        if file is not None and not self.storage.exists(_meta(id)):
            self._known.pop(id, None)  # another thread may have been here
            file = None
        if file is None:
            try:
                file = self._known[id] = StoredFile(**json.loads(self.storage.read(_meta(id))))
            except FileNotFoundError:
                return None
        gone = not expired and file.expires_at is not None and file.expires_at <= self._clock()
        return None if gone or (owner is not None and file.owner != owner) else file

    def all(self, owner: str | None = None) -> list[StoredFile]:
        """Every file, the newest first."""
        ids = (path.rpartition("/")[2].removesuffix(".json") for path in self.storage.list("meta"))
        found = [file for id in ids if (file := self.get(id, owner))]
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def expired(self) -> list[str]:
        """Ids of files that are treated as gone, and still lie there."""
        ids = [path.rpartition("/")[2].removesuffix(".json") for path in self.storage.list("meta")]
        return [id for id in ids if _ID.fullmatch(id) and self.get(id) is None]

    def path(self, id: str) -> str:
        """Path or URL of the bytes, as the corpus's readers take it. FileNotFoundError: it is gone."""
        return f"{self.storage.url}/{self._content(id)}"

    def read(self, id: str) -> Iterator[bytes]:
        """The bytes in chunks. Raises as `path`."""
        with self._fs.open(f"{self._root}/{self._content(id)}", "rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def delete(self, id: str) -> None:
        """The record first: without it there is no file."""
        file = self.get(id, expired=True)
        self.storage.remove(_meta(id))
        self._known.pop(id, None)
        if file is not None:
            self._discard(file.content)

    def _content(self, id: str) -> str:
        file = self.get(id, expired=True)
        if file is None:
            raise FileNotFoundError(f"no file {id}")
        return file.content

    def _write(self, content: str, chunks: Iterable[bytes], most: int | None) -> int:
        path, size, local = f"{self._root}/{content}", 0, isinstance(self.storage, LocalStorage)
        if local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with self._fs.open(path, "wb") as out:
            for chunk in chunks:
                size += len(chunk)
                if most is not None and size > most:
                    raise TooLarge(f"the file has more than {most:,} bytes")
                out.write(chunk)
            if local:
                out.flush()
                os.fsync(out.fileno())
        if local:
            OsDisk().sync_dir(os.path.dirname(path))
        return size

    def _discard(self, content: str) -> None:
        with contextlib.suppress(OSError):
            self._fs.rm_file(f"{self._root}/{content}")


def check(url: str) -> None:
    """Refuse a place that takes no file, or where two creates of one name can both succeed."""
    try:
        prepare(open_storage(f"{url.rstrip('/')}/files"))
    except UserError as error:
        raise UserError(
            error.message, field="batches.path", value=url, hint="choose a folder or bucket that it may write to"
        ) from error


def _meta(id: str) -> str:
    return f"meta/{id}.json"
