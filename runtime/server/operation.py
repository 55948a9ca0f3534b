"""What a handler takes and answers, said beside the handler; the OpenAPI document is made of it.

The router knows paths and methods and the docstring says what the handler does, so only the rest is said here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

Handler = TypeVar("Handler", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])


@dataclass(frozen=True)
class Operation:
    """One handler's side of the contract.

    body     the struct of its JSON body
    form     the fields of its multipart body instead, each "binary" or "string"
    query    its query parameters, as JSON schemas
    headers  request headers that it reads, as JSON schemas
    answer   the type of its JSON answer; None where that is an object of no fixed shape
    kinds    the content types that it answers with
    status   its status when all is well
    errors   statuses beyond those that every route of its kind can answer with
    """

    body: Any = None
    form: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answer: Any = None
    kinds: tuple[str, ...] = ("application/json",)
    status: int = 200
    errors: tuple[int, ...] = ()


JSON_OR_EVENTS = ("application/json", "text/event-stream")


def operation(**parts: Any) -> Callable[[Handler], Handler]:
    """Say what a handler takes and answers; the parts are the fields of `Operation`."""

    def mark(handler: Handler) -> Handler:
        handler.__dict__["operation"] = Operation(**parts)
        return handler

    return mark


def operation_of(handler: Any) -> Operation | None:
    """What the handler said, if anything."""
    found = getattr(handler, "operation", None)
    return found if isinstance(found, Operation) else None


def route_of(request: web.Request) -> str | None:
    """The route as it was registered; None if there is none for this path and method."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical
