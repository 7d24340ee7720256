"""The same methods behind HTTP: routes, a gateway, replicas on Ray Serve. `build` is the application's import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def build(args: Mapping[str, Any]) -> Any:
    """Ray Serve's application of a configuration (`args` of its config file). Raises UserError."""
    from serve_app.app import build as build_application

    return build_application(args)
