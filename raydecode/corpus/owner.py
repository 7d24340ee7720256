"""Whose output it is while a job runs: a process of a host, told apart from a later one with the same number."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """The process whose death should free the output: the driver's, not the committer's."""

    host: str
    pid: int
    born: str  # start time of the process: a reused pid is another process

    @classmethod
    def me(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), born(os.getpid()))

    def alive(self) -> bool | None:
        """True, False, or None when it cannot be seen from this host."""
        if self.host != socket.gethostname():
            return None
        now = born(self.pid)
        return bool(now) and now == self.born


def born(pid: int) -> str:
    """Start time of a process in clock ticks since boot, "" when there is none. Outside Linux only its existence."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
