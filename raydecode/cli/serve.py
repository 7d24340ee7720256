"""`raydecode serve`: models behind an OpenAI-compatible server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raydecode.cli.terminal import count, err, out
from raydecode.errors import UserError


def _new_key(wanted: bool) -> None:
    """A fresh API key and the line that makes it known; then end."""
    if wanted:
        from serve_app.keys import hashed, new_key

        key = new_key()
        out.print(f"key, shown once     {key}", markup=False, highlight=False, soft_wrap=True)
        out.print(
            f"for the server file keys: [{{name: me, sha256: {hashed(key)}}}]",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit


def command(
    config: Annotated[Path, typer.Argument(help="the server file, ours or Ray Serve's with ours as args")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes by dots: models.0.engine.slots=16")] = None,
    host: Annotated[str | None, typer.Option("--host", help="the address to listen on; short for http.host")] = None,
    port: Annotated[int | None, typer.Option("--port", help="short for http.port; 0 takes a free one")] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", callback=_new_key, is_eager=True, help="print a fresh API key and its hash")
    ] = False,
) -> None:
    """Serve the models of CONFIG until SIGINT or SIGTERM; running requests end first."""
    from raydecode.config import load_serve

    short = [f"http.{name}={value}" for name, value in (("host", host), ("port", port)) if value is not None]
    found = load_serve(config, [*(overrides or ()), *short])
    try:
        _serve(found)
    except UserError as error:
        raise found.locate(error) from error


def _serve(config: Any) -> None:
    from raydecode.assemble import choose

    choices = {model.name: choose(model) for model in config.models}  # refused before anything is started
    try:
        import serve_app
        from serve_app import front
    except ImportError as error:
        raise UserError(
            f"the server needs a package that is not here: {error.name}", field="raydecode serve",
            hint="pip install 'raydecode[serve]' (in a checkout: make install EXTRA=serve)",
        ) from None  # fmt: skip
    from pipelines.session import ray_session

    sock = front.listening(config.http)
    for name, choice in choices.items():
        err.print(f"loading {name}: {choice.name} engine, {choice.dtype}, {choice.why}", style="dim", markup=False)
    with ray_session(serve_app) as ray:
        gateway = front.start_replicas(config, ray)
        try:
            drain = max(model.scaling.drain_s for model in config.models)
            url = front.address(config.http, sock)
            front.serve_here(config, gateway, sock, lambda: _tell(config, gateway, url), drain)
        finally:
            err.print("stopping", style="dim")
            front.stop_replicas()


def _tell(config: Any, gateway: Any, url: str) -> None:
    """Where it is, what it serves, and the first thing to try."""
    for one in gateway.models():
        about = [f"{one.engine} engine", one.dtype, one.promise, f"context {count(one.context)}" if one.context else ""]
        said = ", ".join(filter(None, about)) if one.engine else "loads when asked"
        out.print(f"{one.name:<24} {said}", markup=False)
    out.print(f"\n[bold]{url}/v1[/bold]")
    if config.http.playground:
        out.print(f"playground  {url}/", markup=False)
    key = ' -H "Authorization: Bearer $KEY"' if config.keys else ""
    body = f'{{"model": "{config.models[0].name}", "prompt": "The capital of France is", "max_tokens": 16}}'
    head = f"curl {url}/v1/completions{key} -H 'Content-Type: application/json'"
    out.print(f"try         {head} -d '{body}'", markup=False)
