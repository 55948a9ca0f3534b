"""How many connections a server takes: those beyond the limit are closed, the others are served."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from runtime.config import Limits
from runtime.server.connection import listen


async def test_one_connection_too_many_is_closed() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.add_routes([web.get("/", hello)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    listener = await listen(runner, sock, Limits(max_connections=2))
    address = sock.getsockname()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return await reader.read(1 << 12)
        except ConnectionError:
            return b""

    opened = [await asyncio.open_connection(*address) for _ in range(2)]
    assert all([b"200 OK" in await ask(*pair) for pair in opened])
    for _ in range(3):
        assert await ask(*await asyncio.open_connection(*address)) == b""
    assert b"200 OK" in await ask(*opened[0])
    opened[1][1].close()
    await opened[1][1].wait_closed()
    for _ in range(100):  # the server hears of it soon
        if answer := await ask(*await asyncio.open_connection(*address)):
            break
        await asyncio.sleep(0.02)
    assert b"200 OK" in answer
    listener.close()
    await runner.cleanup()
