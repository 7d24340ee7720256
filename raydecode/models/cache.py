"""The cache of what is built once on a machine (converted models, kernels), by one process, and never seen half built.

    <cache>/models/<name>/             a finished folder; appears by one rename, is never changed afterwards
    <cache>/models/.<name>.lock        held (flock) by the process that builds; the kernel frees it when that dies
    <cache>/models/.<name>.partial-*   a build in progress, or what a killed build left; the next builder removes it
    <cache>/kernels/<name>/            the same for another shelf

`<cache>` is `$RAYDECODE_CACHE`, else `$XDG_CACHE_HOME/raydecode`, else `~/.cache/raydecode`.
Law: a folder called `<name>` is complete. Files and the folder are synced before the rename, so this holds after a
power cut too. Finished files are readable for everyone (safetensors writes 0600), so that users can share a cache.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raydecode.models.errors import ModelError

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """The cache folder of this user; not created here."""
    if chosen := os.environ.get("RAYDECODE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "raydecode"


def finished(name: str, shelf: str = "models") -> Path | None:
    """The folder of `name` if it has been built."""
    folder = cache_root() / shelf / name
    return folder if folder.is_dir() else None


def build_once(name: str, build: Callable[[Path], None], *, shelf: str = "models") -> Path:
    """The folder `name`, calling `build(empty_folder)` if no process has finished it yet.

    A second caller waits for the first and then uses its result; if the first dies, the second builds.
    An exception of `build` passes through and leaves nothing behind.
    """
    if folder := finished(name, shelf):
        return folder
    folders = cache_root() / shelf
    try:
        folders.mkdir(parents=True, exist_ok=True)
        with _locked(folders / f".{name}.lock"):
            if folder := finished(name, shelf):
                return folder
            for stale in folders.glob(f".{name}.partial-*"):  # we hold the lock: its builder is dead
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=folders))
            try:
                build(partial)
                _publishable(partial)
                partial.rename(folders / name)
                _sync(folders)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as failure:
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ModelError(
            f"the cache {folders} cannot be written: {failure.strerror}",
            field="model",
            value=str(folders),
            hint="set RAYDECODE_CACHE to a writable folder with room",
        ) from failure
    return folders / name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares %s", path.name.removeprefix(".").removesuffix(".lock"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # frees the lock; the file stays, because removing it would let two builders hold two inodes


def _publishable(folder: Path) -> None:
    """Make all below `folder` readable for others, and durable."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
