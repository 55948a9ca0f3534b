"""Server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import EngineError
from runtime.server import errors

log = logging.getLogger("runtime.server")


class EventStream:
    """A response that grows event by event. `send` waits while the client is slow, so nothing piles up here.

    What is raised inside becomes the last event, without a [DONE]: nobody takes a part for the whole.
    """

    def __init__(
        self, request: web.Request, headers: Mapping[str, str] | None = None, *, named: bool = False
    ) -> None:
        """`named`: events have names and a type, the one for an error too."""
        self._request = request
        self._named = named
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                **(headers or {}),
            }
        )

    async def __aenter__(self) -> EventStream:
        await self._response.prepare(self._request)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, ConnectionError):
            return
        if not isinstance(error, Exception):  # cancelled: the client is gone, or takes nothing
            if (transport := self._request.transport) is not None:
                transport.abort()
            return
        if not isinstance(error, EngineError):
            log.error("%s %s failed", self._request.method, self._request.path, exc_info=error)
            error = EngineError(errors.UNEXPECTED)
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            last = errors.body(error.message, error.status, param=error.param, code=error.code)
            await (self.send({"type": "error", **last}, "error") if self._named else self.send(last))
            await self._response.write_eof()
        raise errors.Ended(self._response) from error

    async def send(self, data: Any, name: str | None = None) -> None:
        """One event; some APIs name theirs."""
        head = b"" if name is None else f"event: {name}\n".encode()
        await self._response.write(head + b"data: " + msgspec.json.encode(data) + b"\n\n")

    async def end(self) -> web.StreamResponse:
        """Finish, for APIs whose last event says so."""
        await self._response.write_eof()
        return self._response

    async def done(self) -> web.StreamResponse:
        await self._response.write(b"data: [DONE]\n\n")
        return await self.end()
