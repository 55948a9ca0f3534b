"""Responses that are kept: what was answered, what it was made from, and what a later request goes on from."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from typing import Any, Literal

import msgspec
from aiohttp import web

from runtime.errors import InvalidRequest, NotFound, Unsupported
from runtime.server.files import PAGED, page_of
from runtime.server.operation import operation

MAX_KEPT_BYTES = 64 << 20
_ID = "{id:(?!input_tokens$)[^/]+}"  # /v1/responses/input_tokens is a route of its own


class Response(msgspec.Struct):
    """What was asked for is there as well, each field under its own name."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    seed: int
    system_fingerprint: str


class InputItems(msgspec.Struct):
    """A page of what a response was made from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct):
    id: str
    object: Literal["response"]
    deleted: bool


class Kept(msgspec.Struct, frozen=True):
    """A response, the items that it was asked with, and the conversation up to its end."""

    response: dict[str, Any]
    input: list[dict[str, Any]]
    messages: list[dict[str, Any]]


class Responses:
    """The newest responses, at most `count` of them and `MAX_KEPT_BYTES`; older ones are forgotten."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def put(self, id: str, kept: Kept) -> None:
        data = msgspec.msgpack.encode(kept)
        self._kept[id] = data
        self._bytes += len(data)
        while self._kept and (len(self._kept) > self._count or self._bytes > MAX_KEPT_BYTES):
            self._bytes -= len(self._kept.popitem(last=False)[1])

    def get(self, id: str) -> Kept:
        """Raises NotFound."""
        if id not in self._kept:
            raise NotFound(
                f"there is no response {id!r}; it was not stored, or is no longer kept",
                param="previous_response_id",
            )
        return msgspec.msgpack.decode(self._kept[id], type=Kept)

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        self.get(id)
        self._bytes -= len(self._kept.pop(id))


STORE: web.AppKey[Responses] = web.AppKey("responses", Responses)


def items_of(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Input as items that have a type and an id."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [{"type": "message", "id": f"msg_{uuid.uuid4().hex}", **item} for item in given]


@operation(answer=Response)
async def retrieve(request: web.Request) -> web.Response:
    """A response that is kept, whole: its stream is over."""
    if request.query.get("stream") == "true":
        raise Unsupported("a response is streamed while it is made; leave stream out", param="stream")
    return web.json_response(request.app[STORE].get(request.match_info["id"]).response)


@operation(
    query={**PAGED, "order": {"type": "string", "enum": ["asc", "desc"]}}, answer=InputItems, errors=(404,)
)
async def input_items(request: web.Request) -> web.Response:
    """What a kept response was made from, the newest item first."""
    after, limit = page_of(request)
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order is {order[:20]!r} but must be asc or desc", param="order")
    items = request.app[STORE].get(request.match_info["id"]).input
    items = items if order == "asc" else items[::-1]
    if after is not None:
        places = [i for i, item in enumerate(items) if item["id"] == after]
        if not places:
            raise NotFound(f"there is no item {after[:100]!r}", param="after")
        items = items[places[0] + 1 :]
    some = items[:limit]
    ends = (some[0]["id"], some[-1]["id"]) if some else (None, None)
    page = {"first_id": ends[0], "last_id": ends[1], "has_more": len(some) < len(items)}
    return web.json_response({"object": "list", "data": some, **page})


@operation(answer=Deleted)
async def delete(request: web.Request) -> web.Response:
    """Forget a response."""
    id = request.match_info["id"]
    request.app[STORE].delete(id)
    return web.json_response({"id": id, "object": "response", "deleted": True})


def routes() -> list[web.RouteDef]:
    return [
        web.get(f"/v1/responses/{_ID}", retrieve),
        web.get(f"/v1/responses/{_ID}/input_items", input_items),
        web.delete(f"/v1/responses/{_ID}", delete),
    ]
