"""Which handlers answer without a key. The mark is on the handler that the router chose, so no spelling of a path
can reach one handler and be judged as another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

Handler = TypeVar("Handler", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])


def public(handler: Handler) -> Handler:
    """Mark a handler: it answers anybody, whatever key is sent."""
    handler.__dict__["needs_key"] = "never"
    return handler


def keyless(handler: Handler) -> Handler:
    """Mark a handler: it needs no key, but one that is sent has to be right."""
    handler.__dict__["needs_key"] = "if sent"
    return handler


def is_open(request: web.Request) -> bool:
    """Whether the handler that will answer this request may do so without looking at the key."""
    mark = getattr(request.match_info.handler, "needs_key", "always")
    return mark == "never" or (mark == "if sent" and "Authorization" not in request.headers)
