"""What is known of a request from outside: its id, its route, how it ended and how long it took.

What it said is logged only with --log-requests; keys, which are in headers, never.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from aiohttp import web

from runtime.errors import Overloaded
from runtime.log import REQUEST_ID
from runtime.server.auth import Origins
from runtime.server.context import Context
from runtime.server.operation import route_of

log = logging.getLogger("runtime.requests")
_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_SHOWN = 2048  # characters of a body, with --log-requests
_ENDING = ("/abort_request", "/page/abort")
SERVER = "runtime"  # and not the versions of Python and aiohttp
ID_HEADER = "X-Request-Id"


def request_id(request: web.Request) -> str:
    """The caller's id if it is one that can be logged, else a new one."""
    given = request.headers.get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


@web.middleware
async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Name the request, and log how it ended."""
    context = Context.of(request)
    id = request["id"] = request_id(request)
    token = REQUEST_ID.set(id)
    began = time.perf_counter()
    status = 499  # unless an answer is made, the client has left
    response: web.StreamResponse | None = None
    counted = not context.closing
    context.serving += counted
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        seconds = time.perf_counter() - began
        route = route_of(request) or "none"
        context.serving -= counted
        context.metrics.answer(request.method, route, status)
        fields = {"method": request.method, "route": route, "status": status, "seconds": round(seconds, 4)}
        if context.server.log_requests and (said := _said(request, response)):
            log.info("asked %r, answered %r", said.get("asked"), said.get("answered"), extra={"fields": said})
        log.info("%s %s %d %.0f ms", request.method, route, status, seconds * 1e3, extra={"fields": fields})
        REQUEST_ID.reset(token)


def _said(request: web.Request, response: web.StreamResponse | None) -> dict[str, str]:
    """What the request and its answer say, as far as they are JSON; nothing of a stream."""

    def shown(kind: str, data: Any) -> str:
        if kind != "application/json" or not isinstance(data, bytes):
            return ""
        return data.decode("utf-8", "replace")[:_SHOWN]

    asked = request._read_bytes  # what was read of it; its client may be gone
    answer = response.body if isinstance(response, web.Response) else None
    said = {
        "asked": shown(request.content_type, asked),
        "answered": shown("" if response is None else response.content_type, answer),
    }
    return {name: text for name, text in said.items() if text}


@web.middleware
async def until_closing(request: web.Request, handler: Any) -> web.StreamResponse:
    """While the server shuts down it answers questions, and ends requests, but begins nothing."""
    begins = request.method not in ("GET", "HEAD", "OPTIONS") and route_of(request) not in _ENDING
    if begins and Context.of(request).closing:
        raise Overloaded("the server is shutting down")
    return await handler(request)


def answer_headers(origins: Origins) -> Any:
    """Put the name, the id, and what lets pages of listed origins read the answer, into every response."""

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER
        if (id := request.get("id")) is not None:
            response.headers[ID_HEADER] = id
            if request.path.startswith("/v1/messages"):
                response.headers["request-id"] = id  # where Anthropic's clients look for it
        if (origin := request.headers.get("Origin")) is not None:
            response.headers.update(origins.headers(origin))

    return add
