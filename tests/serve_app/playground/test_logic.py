"""The page's plain functions: their tests are modules (`logic/`), run in the browser that the page runs in."""

from __future__ import annotations

from collections.abc import Callable

from tests.serve_app.playground.chromium import Page


def test_plain_functions(opened: Callable[..., Page]) -> None:
    page = opened()
    found = page.evaluate("import('/repository/tests/serve_app/playground/logic/all.js').then((all) => all.run())")
    failed = [f"{one['name']}: {one['error']}" for one in found if one["error"]]
    assert len(found) > 35
    assert not failed, "\n".join(failed)
