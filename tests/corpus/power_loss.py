"""A disk in memory that stops before any system call and then forgets what was never synced.

The durability model is that of `raydecode.corpus.disk`: bytes survive after `sync_file`, names after `sync_dir` of
their folder, and nothing else is promised. `crash` leaves the disk as a killed process (`kept`), as a power loss
(`lost`), or as anything between: every unsynced name and every unsynced file's bytes independently kept, lost or
torn (`mixed`).
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable


class Crash(BaseException):
    """Not an Exception: nothing may catch it."""


class Inode:
    def __init__(self) -> None:
        self.data = b""
        self.durable: bytes | None = None


class PowerLossDisk:
    """See the module. `hook(what, path)` is called before every call; it may raise Crash or switch threads."""

    def __init__(self) -> None:
        self.now: dict[str, dict[str, Inode | None]] = {"/": {}}  # folder -> name -> inode (None: a folder)
        self.durable: dict[str, dict[str, Inode | None]] = {"/": {}}
        self.hook: Callable[[str, str], None] = lambda what, path: None
        self.torn: Callable[[], bool] = lambda: False

    # the calls

    def write(self, path: str, data: bytes) -> None:
        self.hook("write", path)
        folder, name = self._split(path)
        if folder not in self.now:
            raise FileNotFoundError(errno.ENOENT, "no folder", path)
        inode = self.now[folder].setdefault(name, Inode())
        assert inode is not None
        inode.data = data[: len(data) // 2] if self.torn() else data
        if self.torn():
            raise Crash

    def sync_file(self, path: str) -> None:
        self.hook("sync_file", path)
        inode = self._inode(path)
        inode.durable = inode.data

    def sync_dir(self, path: str) -> None:
        self.hook("sync_dir", path)
        self.durable[path] = dict(self.now[path])

    def link(self, source: str, target: str) -> None:
        self.hook("link", target)
        inode = self._inode(source)
        folder, name = self._split(target)
        if name in self.now[folder]:
            raise FileExistsError(errno.EEXIST, "exists", target)
        self.now[folder][name] = inode

    def unlink(self, path: str) -> None:
        self.hook("unlink", path)
        self._inode(path)
        folder, name = self._split(path)
        del self.now[folder][name]

    def mkdir(self, path: str) -> None:
        self.hook("mkdir", path)
        folder, name = self._split(path)
        if name not in self.now[folder]:
            self.now[folder][name] = None
            self.now.setdefault(path, {})

    def read(self, path: str) -> bytes:
        self.hook("read", path)
        return self._inode(path).data

    def exists(self, path: str) -> bool:
        folder, name = self._split(path)
        return path in self.now or name in self.now.get(folder, {})

    def names(self, path: str) -> list[str]:
        self.hook("names", path)
        if path in self.now:
            return sorted(self.now[path])
        folder, name = self._split(path)
        if name in self.now.get(folder, {}):
            raise NotADirectoryError(errno.ENOTDIR, "a file", path)
        return []

    # the adversary

    def crash(self, how: str, rng: random.Random) -> None:
        """The machine or the process is gone; what is left becomes the new beginning, durable."""
        self.hook, self.torn = lambda what, path: None, lambda: False
        if how == "kept":
            for folder in self.now.values():
                for inode in folder.values():
                    if inode is not None:
                        inode.durable = inode.data
            self.durable = {path: dict(names) for path, names in self.now.items()}
            return
        left: dict[str, dict[str, Inode | None]] = {}
        todo = ["/"]
        while todo:
            path = todo.pop()
            old, new = self.durable.get(path, {}), self.now.get(path, {})
            names = dict(old)
            if how == "mixed":
                for name in sorted(old.keys() | new.keys()):
                    if rng.random() < 0.5:
                        names.pop(name, None)
                        if name in new:
                            names[name] = new[name]
            left[path] = names
            todo += [f"{path.rstrip('/')}/{name}" for name, inode in names.items() if inode is None]
        seen: set[int] = set()
        for names in left.values():
            for inode in names.values():
                if inode is not None and id(inode) not in seen:
                    seen.add(id(inode))
                    self._lose(inode, how, rng)
        self.now = left
        self.durable = {path: dict(names) for path, names in left.items()}

    def _lose(self, inode: Inode, how: str, rng: random.Random) -> None:
        if inode.durable != inode.data:
            kept = inode.durable or b""
            if how == "mixed":
                kept = rng.choice([kept, inode.data, inode.data[: rng.randrange(len(inode.data) + 1)]])
            inode.data = kept
        inode.durable = inode.data

    def _inode(self, path: str) -> Inode:
        folder, name = self._split(path)
        inode = self.now.get(folder, {}).get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        return inode

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder or "/", name
