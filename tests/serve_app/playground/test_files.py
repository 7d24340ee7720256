"""What goes out with the page: addresses, policy, caches, licences; and that each file is there when installed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serve_app.playground import TYPES, digest_of, mount_playground, page_files

PAGE = Path(__file__).resolve().parents[3] / "serve_app" / "playground" / "page"


def get(path: str, **headers: str) -> httpx.Response:
    app = FastAPI()
    mount_playground(app)
    assert not app.openapi()["paths"]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_every_address_of_the_page_answers() -> None:
    index = get("/")
    names = re.findall(r'(?:href|src)="([^"]+)"', index.text) + re.findall(r'"\./([^"]+)"', index.text)
    assert len(names) == 6
    for name in names:
        answer = get("/" + name)
        assert answer.status_code == 200, name
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].split(";")[0] in {one.split(";")[0] for one in TYPES.values()}


def test_imports_of_modules_lead_somewhere() -> None:
    files = page_files()
    bare = {"preact", "preact/hooks", "htm"}
    for name, content in files.items():
        if name.endswith(".js") and not name.startswith("vendor/"):
            for target in re.findall(r'from "([^"]+)"', content.decode()):
                assert target in bare or target.removeprefix("./") in files, f"{name}: {target}"


def test_the_policy_allows_this_server_alone() -> None:
    policy = get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "'sha256-" in policy
    for name, content in page_files().items():
        addresses = set(re.findall(rb"https?://[\w.]+", content)) - {b"http://www.w3.org"}
        assert not addresses or name.startswith("vendor/"), f"{name} names {addresses}"


def test_browsers_keep_files_and_ask_again_for_the_page() -> None:
    page = get("/")
    assert page.headers["cache-control"] == "no-cache"
    assert get("/", **{"If-None-Match": page.headers["etag"]}).status_code == 304
    digest = digest_of(page_files())
    assert digest in page.text
    assert "immutable" in get(f"/playground/{digest}/app.js").headers["cache-control"]
    older = get("/playground/0123456789abcdef/app.js")
    assert (older.status_code, older.headers["cache-control"]) == (200, "no-cache"), "a page that was loaded before"
    assert get("/playground/x/none.js").status_code == 404
    assert get("/playground/x/..%2F__init__.py").status_code == 404
    assert digest_of({"a": b"1"}) != digest_of({"a": b"2"}) != digest_of({"b": b"2"})


def test_vendored_modules_are_what_was_published() -> None:
    """Each has its licence, its exact version and its hash, and nothing else lies beside them."""
    listed = json.loads((PAGE / "vendor" / "vendor.json").read_text())
    present = {path.name for path in (PAGE / "vendor").iterdir()} - {"vendor.json"}
    assert present == {name for one in listed for name in (*one["files"], one["license_file"])}
    for one in listed:
        assert re.fullmatch(r"\d+\.\d+\.\d+", one["version"])
        assert "Apache License" in (text := (PAGE / "vendor" / one["license_file"]).read_text()) or "MIT" in text
        for name, published in one["files"].items():
            assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == published["sha256"], name


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.glob("*.js")))
def test_one_concern_per_file(name: str) -> None:
    assert len((PAGE / name).read_text().splitlines()) <= 400
