"""How events come from a replica: over one connection for all of its streams, a frame per step.

Ray Serve's streaming calls cost 1.75 ms of CPU per item, in two processes, which is per stream and token; this way it
is 0.13 (docs/log.md). So a request is an ordinary call of Ray Serve (which routes, counts and cancels it), and its
events take this way:

    gateway   Inbox: listens, and has a number and a reader for each open request
    replica   Lines: a connection to each inbox that ever called; `put(number, item)`, one frame for all of a turn's

A connection that ends, however it does, ends the streams that came over it, at once. Frames are pickles, so an inbox
reads none before the other side has shown the inbox's secret, which travels in Ray's own calls. Where Ray uses TLS
(RAY_USE_TLS), so does this, with the same certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import pickle
import secrets
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SECRET_BYTES = 32
HANDSHAKE_S = 10.0
LARGEST = 1 << 30
"""Bytes of a frame; a connection that announces more is none of ours."""
_SIZE = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Address:
    """Where an inbox listens. secret: not shown."""

    host: str
    port: int
    secret: bytes = field(repr=False)


Reader = Callable[[Any], None]
"""Takes an item of a stream; None: the connection has ended."""


class Inbox:
    """The side that reads. host: an address of this machine that replicas reach."""

    def __init__(self, host: str) -> None:
        self._host, self._secret = host, secrets.token_bytes(SECRET_BYTES)
        self._readers: dict[int, Reader] = {}
        self._over: dict[int, asyncio.Task[None]] = {}  # the connection by which a stream's items come
        self._next = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> Address:
        """Listen; where."""
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=_context(server=True))
        return Address(self._host, self._server.sockets[0].getsockname()[1], self._secret)

    async def close(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
        for sink in [*self._open.values()]:
            sink.close()
        await asyncio.gather(*self._open)

    def open(self, reader: Reader) -> int:
        """A number for a stream, whose items the reader takes until `forget`."""
        self._next += 1
        self._readers[self._next] = reader
        return self._next

    def forget(self, number: int) -> None:
        self._readers.pop(number, None)
        self._over.pop(number, None)

    async def _accept(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = sink
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                shown = await source.readexactly(SECRET_BYTES)
            if not hmac.compare_digest(shown, self._secret):
                return
            while True:
                (size,) = _SIZE.unpack(await source.readexactly(_SIZE.size))
                if size > LARGEST:
                    return
                for number, item in pickle.loads(await source.readexactly(size)):
                    reader = self._readers.get(number)
                    if reader is not None:
                        self._over[number] = task
                        reader(item)
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass
        finally:
            del self._open[task]
            sink.close()
            for number in [number for number, one in self._over.items() if one is task]:
                del self._over[number]
                self._readers[number](None)


class Line:
    """The side that writes, to one inbox. broken: called when the connection has ended."""

    def __init__(self, sink: asyncio.StreamWriter) -> None:
        self._sink, self._turn = sink, list[tuple[int, Any]]()
        self._loop = asyncio.get_running_loop()
        self.listeners: set[Callable[[], None]] = set()
        self.broken = False

    def put(self, number: int, item: Any) -> None:
        """Send an item with all others of this turn of the event loop. Nothing when the connection has ended."""
        if not self._turn:
            self._loop.call_soon(self._flush)
        self._turn.append((number, item))

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        if not self.broken:
            frame = pickle.dumps(turn, protocol=pickle.HIGHEST_PROTOCOL)
            self._sink.write(_SIZE.pack(len(frame)))
            self._sink.write(frame)

    def end(self) -> None:
        """The connection has ended: whoever sends over it hears so."""
        self.broken = True
        self._sink.close()
        listeners, self.listeners = self.listeners, set()
        for listener in listeners:
            listener()


class Lines:
    """A replica's connections."""

    def __init__(self) -> None:
        self._lines: dict[Address, asyncio.Task[Line]] = {}
        self._watching: set[asyncio.Task[None]] = set()

    async def to(self, address: Address) -> Line:
        """The connection to an inbox, made when there is none. Raises OSError."""
        task = self._lines.get(address)
        if task is None:
            task = self._lines[address] = asyncio.create_task(self._connect(address))
        try:
            return await asyncio.shield(task)
        except OSError:
            self._lines.pop(address, None)
            raise

    async def _connect(self, address: Address) -> Line:
        source, sink = await asyncio.open_connection(address.host, address.port, ssl=_context(server=False))
        sink.write(address.secret)
        line = Line(sink)
        watch = asyncio.create_task(self._watch(address, source, line))
        self._watching.add(watch)
        watch.add_done_callback(self._watching.discard)
        return line

    async def _watch(self, address: Address, source: asyncio.StreamReader, line: Line) -> None:
        """A inbox never writes: what can be read is the end."""
        with contextlib.suppress(OSError):
            await source.read(1)
        self._lines.pop(address, None)
        line.end()


def _context(*, server: bool) -> ssl.SSLContext | None:
    """Ray's own certificates, where Ray uses them; both sides show theirs."""
    if os.environ.get("RAY_USE_TLS", "0") != "1":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    context.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False  # nodes are known by address; the authority signs nothing but this cluster's
    context.verify_mode = ssl.CERT_REQUIRED
    return context
