"""The playground at `/`: one page that streams two methods side by side and shows how they decode.

Files are in `page/`: plain ES modules and a style sheet, run as they are, without a build step; `page/vendor/` holds
other projects' modules with their licences (`vendor.json`: versions and hashes). Nothing is loaded from elsewhere: the
policy that goes out with the page forbids it.

The files' address holds a hash of them all, so browsers keep them for a year and a new version is a new address.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType

from fastapi import FastAPI, Request, Response

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
}
YEAR_S = 365 * 24 * 3600
COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PATHS = ("/", "/playground/{digest}/{name:path}")
"""Routes that need no API key: the page asks for one."""


def mount_playground(app: FastAPI) -> None:
    """Serve the page at `/` and its files below `/playground/`; neither is in the OpenAPI document."""
    files = page_files()
    digest = digest_of(files)
    index = files["index.html"].replace(b"DIGEST", digest.encode())
    policy = policy_of(index.decode())

    @app.api_route(PATHS[0], methods=["GET", "HEAD"], include_in_schema=False)
    async def playground(request: Request) -> Response:
        headers = {**COMMON, "Content-Security-Policy": policy}
        return _answer(request, "index.html", index, "no-cache", headers)

    @app.api_route(PATHS[1], methods=["GET", "HEAD"], include_in_schema=False)
    async def playground_file(request: Request, name: str) -> Response:
        if name not in files or name == "index.html":
            return Response("no such file\n", 404, COMMON, TYPES["txt"])
        keep = f"public, max-age={YEAR_S}, immutable" if request.path_params["digest"] == digest else "no-cache"
        return _answer(request, name, files[name], keep, COMMON)


def page_files() -> Mapping[str, bytes]:
    """name (with slashes) -> content, of all files of the page."""
    found: dict[str, bytes] = {}

    def read(folder: Traversable, before: str) -> None:
        for one in sorted(folder.iterdir(), key=lambda each: each.name):
            if one.is_dir():
                read(one, f"{before}{one.name}/")
            elif one.name.rpartition(".")[2] in TYPES:
                found[before + one.name] = one.read_bytes()

    read(resources.files(__package__) / "page", "")
    return MappingProxyType(found)


def digest_of(files: Mapping[str, bytes]) -> str:
    """A name for this version of the page."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return whole.hexdigest()[:16]


def policy_of(index: str) -> str:
    """The Content-Security-Policy: this server's files, and the one script that stands in the page (the import map)."""
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", index, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in inline]
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' {' '.join(hashes)}",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _answer(request: Request, name: str, content: bytes, keep: str, headers: Mapping[str, str]) -> Response:
    """The file, or 304 where the browser has it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    own = {**headers, "Cache-Control": keep, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=own)
    return Response(content, headers=own, media_type=TYPES[name.rpartition(".")[2]])
