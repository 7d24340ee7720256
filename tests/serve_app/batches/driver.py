"""A server that can be killed: the real app over a toy engine in this process.

python driver.py FOLDER PORT_FILE [MOST]: with MOST no more lines of batches than that are opened, the others wait. So
whoever kills it finds lines left, however late it comes.
"""

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn

from serve_app.ingress import create_app
from serve_app.local import LocalGateway
from tests.serve_app.toy import config_of


class Gated(LocalGateway):
    """most: lines of the lane "batch" that are opened"""

    def __init__(self, config, most):
        super().__init__(config)
        self._left = most

    async def open(self, model, request, *, lane="interactive", steps=False):
        if lane == "batch":
            self._left -= 1
            if self._left < 0:
                await asyncio.Event().wait()
        return await super().open(model, request, lane=lane, steps=steps)


async def main(folder: str, port_file: str, most: str = "1000000") -> None:
    config = config_of(
        engine={"options": {"step_s": 0.01}},
        batches={"path": folder, "flush_s": 0.2, "slots": 8, "keep_rows": True},
        logging={"level": "warning"},
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    async with Gated(config, int(most)) as gateway:
        app = create_app(gateway, config)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        async with app.router.lifespan_context(app):
            task = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0.01)
            Path(port_file).write_text(str(sock.getsockname()[1]))
            await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
