"""A server that can be killed: the real app over a toy engine in this process.  python driver.py FOLDER PORT_FILE"""

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn

from tests.serve_app.toy import config_of, serving


async def main(folder: str, port_file: str) -> None:
    config = config_of(
        engine={"options": {"step_s": 0.01}},
        batches={"path": folder, "flush_s": 0.2, "slots": 8, "keep_rows": True},
        logging={"level": "warning"},
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    async with serving(config) as app:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        Path(port_file).write_text(str(sock.getsockname()[1]))
        await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
