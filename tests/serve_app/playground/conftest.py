"""One browser and one server for all tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra import browser as installed
from tests.serve_app.playground.chromium import Chromium, Page
from tests.serve_app.playground.server import Server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    path = installed.find()
    if path is None:
        pytest.skip(installed.missing())
    with Chromium(path, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(batches={"path": str(tmp_path_factory.mktemp("batches"))})
    yield one
    one.close()


@pytest.fixture
def opened(chromium: Chromium, server: Server) -> Iterator[Callable[..., Page]]:
    """A new tab on the page, loaded; at its end nothing may have been said on the console.

    expected: parts of lines that the console may say
    """
    pages: list[tuple[Page, tuple[str, ...]]] = []

    def make(path: str = "", *, expected: tuple[str, ...] = (), ready: bool = True, **options: Any) -> Page:
        page = chromium.page((options.pop("url", None) or server.url) + path, **options)
        pages.append((page, expected))
        if ready:
            page.wait("!document.querySelector('#run').disabled")
        return page

    yield make
    for page, expected in pages:
        page.evaluate("1")
        said = [line for line in page.problems if not any(part in line for part in expected)]
        page.close()
        assert not said, said
