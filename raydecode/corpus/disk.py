"""The system calls under `LocalStorage`, one method each, so that a test can stop before any of them.

Durability model (POSIX): a file's bytes survive power loss after `sync_file`; a name appears or disappears
durably after `sync_dir` of its folder. Nothing else is assumed, in particular not that `rename` is durable or that
two changes reach the disk in order. `tests/corpus/power_loss.py` is the adversary for exactly this model.
"""

from __future__ import annotations

import os
from typing import Protocol


class Disk(Protocol):
    """Absolute paths. Errors are the operating system's (FileNotFoundError, FileExistsError, ENOSPC, ...)."""

    def write(self, path: str, data: bytes) -> None: ...  # create or replace; volatile, may be torn
    def sync_file(self, path: str) -> None: ...
    def sync_dir(self, path: str) -> None: ...
    def link(self, source: str, target: str) -> None: ...  # atomic, never replaces
    def unlink(self, path: str) -> None: ...
    def mkdir(self, path: str) -> None: ...  # one level; existing is fine
    def read(self, path: str) -> bytes: ...
    def exists(self, path: str) -> bool: ...
    def names(self, path: str) -> list[str]: ...  # of a folder; a missing folder is empty


class OsDisk:
    """The real one."""

    def write(self, path: str, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)

    def sync_file(self, path: str) -> None:
        self._sync(path, os.O_RDONLY)

    def sync_dir(self, path: str) -> None:
        self._sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def _sync(self, path: str, flags: int) -> None:
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
