"""Which files a job reads, and whether they are still what they were.

Identity of a file = path, size and stamp: content hash for local files up to 64 MiB, else mtime and a hash of both
ends; etag or checksum for object stores. A known local file whose size and mtime are the recorded ones is taken for
unchanged without being opened; another mtime (a copy, a checkout) makes its content count. A file that the log knows
under its path and that differs is refused by name; one that lies elsewhere now under the same name and with the same
content hash has moved (a submitted folder travels under another path each time) and keeps its number; new files get new
numbers; a covered file that has gone is no longer needed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fsspec
import pyarrow.parquet as pq

from raydecode.corpus.intervals import Cover
from raydecode.corpus.records import InputFile
from raydecode.errors import UserError, nearest

FORMATS = ("parquet", "jsonl", "csv", "text", "openai")
_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_WHOLE_HASH = 64 << 20
_CONTENT = "sha256:"
_END_HASH = 64 << 10
_HEAD = 1 << 16
_FIRST_RECORD = "_log/000000000000.json"
_PART = re.compile(r"/part-\d{6}-[0-9a-f]{32}\.parquet$")


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of the listing; its content is read when `stamp` is asked for."""

    path: str
    size: int
    mtime: float | None
    stamp: Callable[[], str]

    def is_still(self, old: InputFile) -> bool:
        if self.size != old.size_bytes:
            return False
        return (self.mtime is not None and self.mtime == old.mtime) or self.stamp() == old.stamp


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL and the path in it."""
    return fsspec.core.url_to_fs(path)


def discover(
    paths: str | Sequence[str],
    *,
    format: str | None = None,
    known: Sequence[InputFile] = (),
    done: Cover | None = None,
    output: str | None = None,
) -> list[InputFile]:
    """Expand files, folders and globs, local or by URL (`s3://`, `gs://`, `hf://`), to the job's input files.

    known, done: what the log says. Known files come first, under their numbers, also those that are covered and gone.
    output:      the job's own output, if it lies below a folder or glob of `paths`: what it holds is no input.
    Raises UserError: nothing found (with the nearest name), a format that cannot be told, a changed or missing file.
    """
    if format is not None and format not in FORMATS:
        raise UserError(
            f"no input format {format!r}",
            field="input.format",
            value=format,
            nearest=nearest(format, FORMATS),
            hint="all: " + ", ".join(FORMATS),
        )
    found: dict[str, _Found] = {}
    for pattern in [paths] if isinstance(paths, str) else list(paths):
        for one in _expand(pattern, explicit=format is not None, output=output):
            found.setdefault(one.path, one)
    out: list[InputFile] = []
    still = {old.path: found.pop(old.path) for old in known if old.path in found}
    for old in known:
        now = still.get(old.path)
        if now is None and (moved := _moved(old, found)):
            now = found.pop(moved)
            old = replace(old, path=now.path, mtime=now.mtime)
        if now is None and not (done and done.covers(old.span)):
            raise UserError(
                f"input file {old.path} was part of this job and is gone or not named; rows of it are still to do",
                field="input.path",
                value=old.path,
                hint="put it back, or choose a new output.path",
            )
        if now is not None and not now.is_still(old):
            raise UserError(
                f"input file {old.path} has changed since this output was begun "
                f"({old.size_bytes} bytes, {old.stamp} -> {now.size} bytes, {now.stamp()})",
                field="input.path",
                value=old.path,
                hint="restore it, give changed rows a new file, or choose a new output.path",
            )
        out.append(old)
    number = max((one.number for one in known), default=-1) + 1
    for one in sorted(found.values(), key=lambda f: f.path):
        out.append(_describe(number, one, format))
        number += 1
    return out


def _moved(old: InputFile, found: Mapping[str, _Found]) -> str | None:
    """Where a known file lies now: the same name, size and content hash under another path."""
    if not old.stamp.startswith(_CONTENT):
        return None
    named = (one for one in found.values() if os.path.basename(one.path) == os.path.basename(old.path))
    return next((one.path for one in named if one.size == old.size_bytes and one.stamp() == old.stamp), None)


def compression(path: str) -> str | None:
    return COMPRESSED.get(os.path.splitext(path)[1].lower())


def format_of(path: str) -> str | None:
    """By the file's ending, looking through a compression."""
    stem = os.path.splitext(path)[0] if compression(path) else path
    return _SUFFIXES.get(os.path.splitext(stem)[1].lower())


def _describe(number: int, found: _Found, format: str | None) -> InputFile:
    kind = format or format_of(found.path)
    if kind is None:
        raise UserError(
            f"cannot tell the format of {found.path} from its name",
            field="input.format",
            value=None,
            hint="set input.format to one of " + ", ".join(FORMATS),
        )
    positions = found.size
    if kind == "parquet":
        positions = _parquet_rows(found.path)
    elif kind == "jsonl" and format is None and _is_openai(found.path):
        kind = "openai"
    return InputFile(number, found.path, kind, found.size, found.stamp(), positions, mtime=found.mtime)


def _parquet_rows(path: str) -> int:
    """Rows by the footer. A file that cannot be read counts as one position: its error row."""
    fs, inner = filesystem(path)
    try:
        with fs.open(inner, "rb") as file:
            return pq.ParquetFile(file).metadata.num_rows
    except Exception:
        return 1


def _is_openai(path: str) -> bool:
    """A line `{"custom_id": ..., "body": {...}}` opens an OpenAI batch file."""
    fs, inner = filesystem(path)
    try:
        with fs.open(inner, "rb", compression=compression(path)) as file:
            head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \r\n\t").split(b"\n", 1)[0]
    except Exception:
        return False
    return head.startswith(b"{") and b'"custom_id"' in head and b'"body"' in head


def _expand(pattern: str, explicit: bool, output: str | None) -> Iterator[_Found]:
    try:
        fs, inner = filesystem(pattern)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {pattern}: {error}", field="input.path", value=pattern) from error
    try:
        if any(c in inner for c in "*?[") and not fs.isfile(inner):
            names = _not_ours(fs, inner, fs.glob(inner, detail=True), output)
            if not inner.rpartition("/")[2].startswith("."):  # as a shell: `*` does not match a leading dot
                names = {n: i for n, i in names.items() if not n.rpartition("/")[2].startswith(".")}
            names = _files(fs, names)
        elif fs.isdir(inner):
            every = _not_ours(fs, inner, fs.find(inner, detail=True), output)
            names = {n: i for n, i in every.items() if not _hidden(n[len(inner) :]) and (explicit or format_of(n))}
            names = _files(fs, names)
        else:
            names = {inner: fs.info(inner)}
    except FileNotFoundError:
        names = {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot list {pattern}: {error}", field="input.path", value=pattern) from error
    if not names:
        formats = "formats: " + ", ".join(sorted(_SUFFIXES)) + " (also compressed), or set input.format"
        here = "" if "://" in pattern or os.path.isabs(pattern) else f"paths start in this folder, {os.getcwd()}; "
        raise UserError(
            f"no input file matches {pattern}", field="input.path", value=pattern, nearest=_neighbour(fs, inner),
            hint=here + formats,
        )  # fmt: skip
    for name, info in names.items():
        mtime = info.get("mtime")
        mtime = float(mtime) if isinstance(mtime, int | float) else None  # object stores have an etag
        yield _Found(_url(fs, name), int(info["size"] or 0), mtime, partial(_stamp, fs, name, info))


def _files(fs: fsspec.AbstractFileSystem, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of a listing, links to files too (a Hub cache is full of them); links to folders are not followed."""
    out = {}
    for name, info in found.items():
        if not info.get("islink"):
            if info["type"] == "file":
                out[name] = info
        elif not fs.exists(name):
            raise UserError(f"{name} is a link to nothing", field="input.path", value=name)
        elif not fs.isdir(name):
            out[name] = info
    return out


def _not_ours(
    fs: fsspec.AbstractFileSystem, pattern: str, found: dict[str, dict[str, Any]], output: str | None
) -> dict[str, dict[str, Any]]:
    """Without what generate jobs wrote, or a job whose output lies in its input's folder would never end.

    Left out: the job's own output, and other outputs below a folder. Of an output that is named itself (the corpus of
    a next job) only the parts count.
    """
    outputs = {name[: -len(_FIRST_RECORD)].rstrip("/") for name in found if name.endswith(f"/{_FIRST_RECORD}")}
    own = None
    if output is not None:
        fs_out, root = filesystem(output)
        own = root.rstrip("/") if _url(fs_out, root) == _url(fs, root) else None
    kept = {}
    for name, info in found.items():
        if own is not None and _made(name, own):
            continue
        if any(_made(name, one) and not (one == pattern.rstrip("/") and _PART.search(name)) for one in outputs):
            continue
        kept[name] = info
    return kept


def _made(name: str, output: str) -> bool:
    """A job with this output wrote the file."""
    if not name.startswith(f"{output}/"):
        return False
    inside = name[len(output) + 1 :]
    return inside.startswith("_") or inside in ("report.json", "report.html") or bool(_PART.fullmatch(f"/{inside}"))


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.strip("/").split("/"))


def _url(fs: fsspec.AbstractFileSystem, name: str) -> str:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return os.path.abspath(name) if protocol in ("file", "local") else fs.unstrip_protocol(name)


def _stamp(fs: fsspec.AbstractFileSystem, name: str, info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "xet_hash", "blob_id", "checksum"):
        if info.get(key):
            return str(info[key]).strip('"')
    size = int(info["size"] or 0)
    try:
        if size <= _WHOLE_HASH:
            return _CONTENT + hashlib.sha256(fs.cat_file(name)).hexdigest()[:32]
        ends = fs.cat_file(name, end=_END_HASH) + fs.cat_file(name, start=size - _END_HASH)
        return f"mtime:{info.get('mtime', '')} ends:{hashlib.sha256(ends).hexdigest()[:16]}"
    except OSError:
        return f"mtime:{info.get('mtime', '')} unreadable"


def _neighbour(fs: fsspec.AbstractFileSystem, inner: str) -> str | None:
    folder, _, name = inner.rstrip("/").rpartition("/")
    try:
        names = [one.rstrip("/").rpartition("/")[2] for one in fs.ls(folder or ".", detail=False)]
    except Exception:
        return None
    if any(c in name for c in "*?["):
        names = [one for one in names if fnmatch.fnmatch(one, "*" + name.strip("*?[]") + "*")] or names
    close = nearest(name, names)
    return f"{folder}/{close}" if close else None
