"""Connections: how many, how long a header may take, and what is said to somebody who does not speak HTTP.

aiohttp's own timer for idle connections runs from the first byte to the end of the header, so it bounds both.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from runtime.config import Limits
from runtime.server import errors
from runtime.server.observe import SERVER

_FIELD_BYTES = 16 << 10  # of one header field; all of them together are counted when they have been read
_LINGER_SECONDS = 5.0  # a refused body is read and thrown away for so long, so that the refusal is read


class Connection(web.RequestHandler):
    """One connection. Errors have the server's one shape, and nothing that was sent is logged."""

    __slots__ = ("_most",)

    def __init__(self, server: web.Server, most: int, **options: Any) -> None:
        super().__init__(server, **options)
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        manager = self._manager
        if manager is not None and len(manager.connections) >= self._most:
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.transport is not None or self._task_handler is not None:  # else it was one too many
            super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun, so no other can be sent")
        if status >= 500:
            self.logger.error("a request failed outside of its handler", exc_info=exc)
            answer = errors.response(errors.UNEXPECTED, 500, code="internal_error")
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(message):
            answer = errors.response(
                "the request line or the header is too large", 431, code="header_too_large"
            )
        else:
            answer = errors.response("this is not a valid HTTP request", 400, code="bad_request")
        answer.headers["Server"] = SERVER
        answer.force_close()
        return answer


async def listen(runner: web.AppRunner, sock: socket.socket, limits: Limits) -> asyncio.Server:
    """Take connections for an application that is set up."""
    _raise_descriptors(limits.max_connections)
    server = runner.server
    assert server is not None
    loop = asyncio.get_running_loop()

    def connection() -> Connection:
        return Connection(
            server,
            limits.max_connections,
            loop=loop,
            access_log=None,
            keepalive_timeout=limits.header_timeout,
            max_headers=limits.max_header_fields,
            max_field_size=min(_FIELD_BYTES, limits.max_header_bytes),
            max_line_size=min(_FIELD_BYTES, limits.max_header_bytes),
            lingering_time=_LINGER_SECONDS,
        )

    return await loop.create_server(connection, sock=sock, backlog=1024)


def _raise_descriptors(connections: int) -> None:
    """Let the process have a file descriptor for each connection, as far as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
