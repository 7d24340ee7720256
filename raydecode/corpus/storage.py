"""The few file-system calls the commit protocol stands on, for local disks and for object stores.

| call | local | object store (fsspec) |
|---|---|---|
| write            | write, fsync, fsync folder                     | put |
| create_exclusive | temporary file, fsync, `link`, fsync folder    | conditional put (`pipe_file(mode="create")`) |
| publish          | `link`, fsync folder, `unlink`                 | server-side copy, delete |

`link` and not `O_EXCL` + write (a crash leaves a torn record that blocks its number); `link` + `unlink` and not
`rename` (a rename between folders is two durable changes whose order POSIX does not promise). Listings are used for
cleaning and for checks, never to learn what is committed: an object store may list late or partially.

Lost answers: a create that is sent again finds its own bytes and has succeeded. Data given to `create_exclusive` must
therefore be unique to its writer (log records carry a uuid).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import fsspec

from raydecode.corpus.disk import Disk, OsDisk
from raydecode.errors import JobError, UserError

_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_BUGS = (TypeError, ValueError, AttributeError, NotImplementedError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRIES = 6  # 5 % of calls failing: 1.6e-8 of giving up per call


class Storage(Protocol):
    """Paths are relative to `url`, with forward slashes."""

    url: str

    def write(self, path: str, data: bytes) -> None:
        """Durable when it returns; a crash may leave nothing or a torn file. Never called for a visible name."""

    def create_exclusive(self, path: str, data: bytes) -> None:
        """All of `data` appears durably under `path`, or FileExistsError when the name is taken by other bytes."""

    def publish(self, source: str, target: str) -> None:
        """Move. Idempotent: source gone and target there is done; both missing is FileNotFoundError."""

    def read(self, path: str) -> bytes: ...
    def exists(self, path: str) -> bool: ...
    def remove(self, path: str) -> None: ...  # durable; missing is fine
    def list(self, folder: str) -> list[str]: ...  # paths of the files directly in or below the folder; may be partial


class LocalStorage:
    """A folder on a local disk or on NFS."""

    def __init__(self, root: str, disk: Disk | None = None) -> None:
        self.url = os.path.abspath(root)
        self._disk: Disk = disk or OsDisk()

    def write(self, path: str, data: bytes) -> None:
        full = self._prepare(path)
        try:
            self._disk.write(full, data)
            self._disk.sync_file(full)
        except OSError:
            self._discard(full)  # a full disk gets the room back
            raise
        self._disk.sync_dir(os.path.dirname(full))

    def create_exclusive(self, path: str, data: bytes) -> None:
        full = self._prepare(path)
        folder, name = os.path.split(full)
        for _ in range(_TRIES):
            temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
            try:
                self._disk.write(temporary, data)
                self._disk.sync_file(temporary)
                self._disk.link(temporary, full)
            except FileNotFoundError:
                continue  # an older attempt that cleans up took the temporary file: write it again
            except FileExistsError:
                self._discard(temporary)
                if self._disk.read(full) == data:  # NFS: the answer to the first link was lost
                    self._disk.sync_dir(folder)
                    return
                raise
            except OSError:
                self._discard(temporary)
                raise
            self._disk.sync_dir(folder)
            self._discard(temporary)
            return
        raise JobError(
            f"{full}: temporary files vanish while they are written; is another program cleaning the output?"
        )

    def publish(self, source: str, target: str) -> None:
        from_, to = self._full(source), self._prepare(target)
        try:
            self._disk.link(from_, to)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if not self._disk.exists(to):
                raise
        self._disk.sync_dir(os.path.dirname(to))
        self._discard(from_)

    def read(self, path: str) -> bytes:
        return self._disk.read(self._full(path))

    def exists(self, path: str) -> bool:
        return self._disk.exists(self._full(path))

    def remove(self, path: str) -> None:
        full = self._full(path)
        if self._disk.exists(full):
            self._discard(full)
            self._disk.sync_dir(os.path.dirname(full))

    def list(self, folder: str) -> list[str]:
        out, todo = [], [folder.strip("/")]
        while todo:
            at = todo.pop()
            for name in self._disk.names(self._full(at)):
                path = f"{at}/{name}" if at else name
                try:
                    self._disk.names(self._full(path))
                except NotADirectoryError:
                    out.append(path)
                else:
                    todo.append(path)
        return sorted(out)

    def _full(self, path: str) -> str:
        return os.path.join(self.url, path) if path else self.url

    def _prepare(self, path: str) -> str:
        """Create the folders of `path`, durably, top down."""
        full = self._full(path)
        missing = []
        folder = os.path.dirname(full)
        while not self._disk.exists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            self._disk.mkdir(folder)
            self._disk.sync_dir(os.path.dirname(folder))
        return full

    def _discard(self, full: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._disk.unlink(full)


class FsspecStorage:
    """A bucket or anything else that fsspec reaches and that has a conditional put (`probe` finds out)."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._fs, self._root, self._sleep = fs, root.rstrip("/"), sleep
        self.url = fs.unstrip_protocol(self._root)

    def write(self, path: str, data: bytes) -> None:
        self._retry(lambda: self._fs.pipe_file(self._full(path), data))

    def create_exclusive(self, path: str, data: bytes) -> None:
        full = self._full(path)
        last: Exception | None = None
        for attempt in range(_TRIES):
            try:
                self._fs.pipe_file(full, data, mode="create")
                return
            except _BUGS:
                raise
            except Exception as error:  # refused, failed, or done with a lost answer: what lies there decides
                last = error
            try:
                there = self._cat(full)
            except FileNotFoundError:
                if _permanent(last):
                    raise last from None
                self._sleep(0.05 * 2**attempt)
                continue
            if there == data:
                return
            raise FileExistsError(errno.EEXIST, "exists", full)
        assert last is not None
        raise last

    def publish(self, source: str, target: str) -> None:
        from_, to = self._full(source), self._full(target)

        def move() -> None:
            try:
                self._fs.cp_file(from_, to)
            except FileNotFoundError:
                if not self._exists(to):
                    raise
                return
            except (PermissionError, NotImplementedError):
                self._put_again(from_, to)  # buckets that enforce conditional writes refuse plain copies
            self._rm(from_)

        self._retry(move)

    def read(self, path: str) -> bytes:
        return self._cat(self._full(path))

    def exists(self, path: str) -> bool:
        return self._exists(self._full(path))

    def remove(self, path: str) -> None:
        self._rm(self._full(path))

    def list(self, folder: str) -> list[str]:
        full = self._full(folder.strip("/")) if folder else self._root

        def find() -> list[str]:
            self._fs.invalidate_cache()
            try:
                return list(self._fs.find(full))
            except FileNotFoundError:
                return []

        start = len(self._fs._strip_protocol(self._root)) + 1
        return sorted(self._fs._strip_protocol(path)[start:] for path in self._retry(find))

    def probe(self) -> None:
        """Refuse a store where two creates of one key can both succeed. Leaves nothing behind."""
        key = f"_tmp/probe-{uuid.uuid4().hex}"
        try:
            self.create_exclusive(key, b"first")
            winners = [b"first"]
            with ThreadPoolExecutor(4) as pool:  # together: a store that looks first and puts then is found out, too
                winners += [data for data, won in pool.map(lambda i: self._attempt(key, i), range(4)) if won]
                raced = f"{key}-race"
                race = [data for data, won in pool.map(lambda i: self._attempt(raced, i), range(4)) if won]
            if len(winners) != 1 or len(race) != 1 or self.read(raced) != race[0]:
                raise _no_conditional_put(self.url, "two exclusive creates of one key both succeeded")
        except _BUGS as error:
            raise _no_conditional_put(self.url, f"{type(error).__name__}: {error}") from error
        finally:
            for name in (key, f"{key}-race"):
                with contextlib.suppress(OSError):
                    self.remove(name)

    def _attempt(self, key: str, i: int) -> tuple[bytes, bool]:
        data = f"probe {i} {uuid.uuid4().hex}".encode()
        try:
            self.create_exclusive(key, data)
        except FileExistsError:
            return data, False
        return data, True

    def _put_again(self, from_: str, to: str) -> None:
        data = self._cat(from_)
        try:
            self._fs.pipe_file(to, data, mode="create")
        except Exception:
            if self._cat(to) != data:
                raise

    def _cat(self, full: str) -> bytes:
        return self._retry(lambda: bytes(self._fs.cat_file(full)))

    def _exists(self, full: str) -> bool:
        def look() -> bool:
            try:  # `exists` of fsspec answers False for any error: a failing call must not read as "not there"
                self._fs.invalidate_cache()
                self._fs.info(full)
                return True
            except FileNotFoundError:
                return False

        return self._retry(look)

    def _rm(self, full: str) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(full)

        self._retry(delete)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _retry(self, call: Callable[[], Any]) -> Any:
        for attempt in range(_TRIES):
            try:
                return call()
            except Exception as error:
                if _permanent(error) or attempt == _TRIES - 1:
                    raise
                self._sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")


def open_storage(url: str, *, options: dict[str, Any] | None = None) -> LocalStorage | FsspecStorage:
    """The storage of an output folder. Does not touch it: `prepare` does."""
    if "://" not in url:
        return LocalStorage(url)
    if url.startswith("file://"):
        return LocalStorage(url[len("file://") :])
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **(options or {}))
    except (ImportError, ValueError) as error:  # a scheme that needs another package, or that nobody knows
        raise UserError(f"cannot open {url}: {error}", field="output.path", value=url) from error
    return FsspecStorage(fs, root)


def prepare(storage: Storage) -> None:
    """Before anything is computed: can the output be written, and exclusively?"""
    try:
        if isinstance(storage, FsspecStorage):
            storage.probe()
        else:
            key = f"_tmp/probe-{uuid.uuid4().hex}"
            storage.create_exclusive(key, b"probe")
            storage.remove(key)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
            raise UserError(
                f"this file system has no hard links or refuses them ({error.strerror})",
                field="output.path",
                value=storage.url,
                hint="write to a local folder, then copy the finished output",
            ) from error
        raise UserError(
            f"cannot write to {storage.url}: {error.strerror or error}",
            field="output.path",
            value=storage.url,
            hint="choose a folder you may write to, e.g. output.path=out/run1",
        ) from error


def is_full(error: BaseException) -> bool:
    """Disk full or quota reached: the job ends at once, everything committed stays."""
    return isinstance(error, OSError) and error.errno in _FULL


def _permanent(error: Exception | None) -> bool:
    return isinstance(error, _PERMANENT + _BUGS) or (error is not None and is_full(error))


def _no_conditional_put(url: str, why: str) -> UserError:
    return UserError(
        f"this store has no exclusive create ({why}); without it two runs could both commit a row",
        field="output.path",
        value=url,
        hint="write to a local folder and upload the finished output",
    )
