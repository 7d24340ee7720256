"""Pages of other origins may change nothing here, unless `http.cors_origins` lists them.

A browser asks beforehand (CORS) only for some requests: a form with a file, or a POST without a body, goes out from any
page that the user of this machine looks at. What the browser says of the page is in headers that no page can set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from serve_app.failures import ApiError

READING = ("GET", "HEAD", "OPTIONS")


def check(method: str, headers: Mapping[str, str], listed: Collection[str]) -> None:
    """Refuse what a page of a foreign origin sends. headers: with lower-case names; listed: `http.cors_origins`."""
    if method in READING:
        return
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and (origin in listed or "*" in listed):
        return
    foreign = site == "cross-site"
    if origin is not None and site != "same-origin":  # which holds, too, where a proxy has changed the Host
        foreign = foreign or urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign:
        raise ApiError(
            403, f"pages of {(origin or 'another site')[:100]!r} may not do this unless http.cors_origins lists them",
            code="foreign_origin",
        )  # fmt: skip
