"""A server on this machine: HTTP in this process, replicas on Ray beside it, no proxy between.

Ray Serve's own proxy and an ingress replica would be two more processes that every token passes through (measured:
docs/log.md). On a cluster, where many proxies share the load, the same routes run in `serve_app/app.py`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from raydecode.config import HttpConfig, ServeConfig, deployment_name
from raydecode.errors import JobError, UserError
from serve_app.deploy import replicas_of
from serve_app.ingress import create_app
from serve_app.observe.logs import configure
from serve_app.remote import RemoteGateway

KEEP_ALIVE_S = 75
BACKLOG = 2048
DESCRIBE_S = 60.0
LOOPBACK = "127.0.0.1"


def listening(http: HttpConfig) -> socket.socket:
    """The socket, bound before models load, so that a port in use is said at once. Raises UserError."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on: 40 ms
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((http.host, http.port))
    except OSError as error:
        sock.close()
        raise UserError(
            f"cannot listen there: {error.strerror}", field="http.port", value=http.port,
            hint="http.port=0 takes a free one (--port 0)",
        ) from None  # fmt: skip
    return sock


def address(http: HttpConfig, sock: socket.socket) -> str:
    """The URL that reaches the server from this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if http.tls_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def start_replicas(config: ServeConfig, ray: Any) -> RemoteGateway:
    """Deploy every model and wait until its least replicas answer. Raises JobError."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    handles = {}
    for model in config.models:
        name = deployment_name(model.name)
        try:
            handles[model.name] = serve.run(replicas_of(model, config, nodes), name=name, route_prefix=None)
        except RuntimeError as error:
            raise JobError(f"model '{model.name}' does not start: {_why(serve, name) or error}") from error
    local = len(nodes) == 1 and not os.environ.get("RAY_ADDRESS")
    gateway = RemoteGateway(config, handles, LOOPBACK if local else None)
    for model in config.models:
        if model.scaling.min:
            gateway.known[model.name] = handles[model.name].described.remote().result(timeout_s=DESCRIBE_S)
    return gateway


def stop_replicas() -> None:
    """End Ray Serve; replicas let what runs end."""
    from ray import serve

    serve.shutdown()


def _why(serve: Any, application: str) -> str | None:
    """What Ray Serve says of an application that did not start."""
    status = serve.status().applications.get(application)
    if status is None:
        return None
    said = [one.message for one in status.deployments.values() if one.message] or [status.message]
    return "\n".join(said) or None


class _Server(uvicorn.Server):
    """uvicorn that says when it listens."""

    def __init__(
        self, config: uvicorn.Config, started: Callable[[], None], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(config)
        self._told, self._close = started, close

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._close()


def serve_here(
    config: ServeConfig, gateway: RemoteGateway, sock: socket.socket, started: Callable[[], None], drain_s: float
) -> None:
    """Speak HTTP until SIGINT or SIGTERM; then take nothing new and let what runs end within `drain_s`.

    A second SIGINT ends at once. started: called when requests are answered. To be called in the main thread.
    """
    http = config.http
    configure(config.logging.level, config.logging.format)
    settings = uvicorn.Config(
        create_app(gateway, config),
        ssl_certfile=http.tls_certfile,
        ssl_keyfile=http.tls_keyfile,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
        backlog=BACKLOG,
        lifespan="on",
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises again the signal that ended it
    try:
        _Server(settings, started, gateway.close).run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
