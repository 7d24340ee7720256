"""An object store in memory, as fsspec sees one, with everything that object stores do to their users.

Conditional puts are atomic. On top, by seed: calls that fail before they act, calls that act and whose answer is
lost, puts that arrive later (after other calls), listings that miss keys, and a full store.
"""

from __future__ import annotations

import contextlib
import errno
import random
import threading
from collections.abc import Callable

from fsspec import AbstractFileSystem


class FaultyStore(AbstractFileSystem):
    protocol = "faulty"
    cachable = False

    def __init__(
        self,
        seed: int = 0,
        fail: float = 0.0,
        lose: float = 0.0,
        late: float = 0.0,
        partial: float = 0.0,
        conditional: bool = True,
    ) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.rng = random.Random(seed)
        self.fail, self.lose, self.late, self.partial, self.conditional = fail, lose, late, partial, conditional
        self.room: int | None = None
        self.delayed: list[tuple[int, Callable[[], None]]] = []
        self.calls = 0
        self.script: dict[int, str] = {}  # call number -> "fail" | "lose" | "late", instead of chance
        self.hook: Callable[[str, str], None] = lambda what, path: None
        self.lock = threading.RLock()

    def _act(self, what: str, path: str, act: Callable[[], object], put: bool = False) -> object:
        self.hook(what, path)
        with self.lock:
            number, self.calls = self.calls, self.calls + 1
            for due in [one for one in self.delayed if one[0] <= number]:
                self.delayed.remove(due)
                due[1]()
            fate = self.script.get(number) or self._fate(put)
            if fate == "late" and put:
                self.delayed.append((number + self.rng.randrange(1, 12), act))
                raise TimeoutError(f"{what} {path}")
            if fate in ("fail", "late"):
                raise OSError(errno.EIO, "connection reset", path)
            result = act()
            if fate == "lose":
                raise TimeoutError(f"{what} {path}")
            return result

    def _fate(self, put: bool) -> str | None:
        roll = self.rng.random()
        for fate, share in (("fail", self.fail), ("lose", self.lose), ("late", self.late)):
            if roll < share:
                return fate
            roll -= share
        return None

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        path = self._strip_protocol(path)

        def put():
            if mode == "create" and self.conditional and path in self.objects:
                raise OSError(errno.EINVAL, "PreconditionFailed: At least one of the pre-conditions did not hold", path)
            if self.room is not None and sum(map(len, self.objects.values())) + len(value) > self.room:
                raise OSError(errno.ENOSPC, "no space left", path)
            self.objects[path] = bytes(value)

        def late():
            with contextlib.suppress(OSError):
                put()

        if mode == "create":
            self._act("create", path, put, put=False)
        else:
            self._act("put", path, late if self.late else put, put=True)

    def create_late(self, path, value):
        """A conditional put whose answer timed out and that arrives now."""
        self.objects.setdefault(self._strip_protocol(path), value)

    def cat_file(self, path, start=None, end=None, **kwargs):
        path = self._strip_protocol(path)
        return self._act("get", path, lambda: self._need(path))[slice(start, end)]

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        return self._act("head", path, lambda: {"name": path, "size": len(self._need(path)), "type": "file"})

    def cp_file(self, path1, path2, **kwargs):
        a, b = self._strip_protocol(path1), self._strip_protocol(path2)
        self._act("copy", b, lambda: self.objects.__setitem__(b, self._need(a)))

    def rm_file(self, path):
        path = self._strip_protocol(path)
        self._act("delete", path, lambda: self.objects.pop(path, None))

    def find(self, path, **kwargs):
        prefix = self._strip_protocol(path).rstrip("/") + "/"

        def listing():
            names = sorted(name for name in self.objects if name.startswith(prefix))
            return [name for name in names if self.rng.random() >= self.partial]

        return self._act("list", prefix, listing)

    def invalidate_cache(self, path=None):
        pass

    def _need(self, path):
        if path not in self.objects:
            raise FileNotFoundError(errno.ENOENT, "no such key", path)
        return self.objects[path]
