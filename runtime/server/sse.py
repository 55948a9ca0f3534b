"""Server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web


class EventStream:
    """A response that grows event by event. `send` waits while the client is slow, so nothing piles up."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def __aenter__(self) -> EventStream:
        await self._response.prepare(self._request)
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def send(self, data: Any) -> None:
        await self._response.write(b"data: " + msgspec.json.encode(data) + b"\n\n")

    async def done(self) -> web.StreamResponse:
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        return self._response
