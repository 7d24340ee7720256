"""How much memory is there, before anything big is read.

Linux kills a process that overcommits without a word, so the estimate comes first and the refusal has figures.
Available on a host: the smaller of `MemAvailable` in /proc/meminfo and, for each control group that contains this
process, its limit minus what it uses and could not give back (page cache of files is given back). Bytes everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

GIB = 1 << 30
RUNTIME_BYTES = 500 << 20
"""torch, transformers, tokenizer and what a forward allocates: 455 MiB beside the weights, measured while
generating 20 tokens with SmolLM2-135M in bfloat16 (torch 2.13, transformers 5.19)."""


def available_bytes(device: str = "cpu", *, root: Path = Path("/")) -> int | None:
    """Bytes that a new allocation may use on `device`; None when the system does not say."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    limits = [*_meminfo(root), *_control_groups(root)]
    return max(0, min(limits)) if limits else None


def peak_bytes() -> int:
    """Most resident memory that this process has held: an engine, its cache and the libraries."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _meminfo(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _control_groups(root: Path) -> Iterator[int]:
    """Room under every limit that binds us: version 2 walks up to the root, version 1 has one memory controller."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _walk(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            yield from _walk(mount, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _walk(mount: Path, path: str, limit_file: str, usage_file: str, reclaimable: str) -> Iterator[int]:
    folder = mount / path.lstrip("/")
    if not folder.is_dir():  # inside a container the path is the host's and the mount is already ours
        folder = mount
    while True:
        limit = _number(folder / limit_file)
        if limit is not None and limit < 1 << 60:  # version 1 writes "no limit" as a huge number
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            yield limit - (_number(folder / usage_file) or 0) + int(stat.get(reclaimable, 0))
        if folder == mount:
            return
        folder = folder.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdigit() else None


def gib(size_bytes: int) -> str:
    """`"0.25 GiB"`."""
    return f"{size_bytes / GIB:.2f} GiB"
