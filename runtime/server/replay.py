"""What the newest requests were, so that one can be run again: GET /replay/{id}, and `runtime replay` on the command line.

Only ids that the server made are known here: they cannot be guessed, so nobody reads the request of another. Kept in
memory alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import NotFound
from runtime.server.answers import as_json
from runtime.server.context import Context
from runtime.server.operation import operation

MAX_BYTES = 32 << 20


class Recorded(msgspec.Struct, frozen=True):
    """`body` asks for the same tokens again: it has the seed that was used, and does not stream."""

    path: str
    body: dict[str, Any]
    system_fingerprint: str


class Recorder:
    """The newest requests, at most `count` of them and `MAX_BYTES` of bodies."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: OrderedDict[str, tuple[str, bytes, int]] = OrderedDict()
        self._bytes = 0

    async def note(self, request: web.Request, id: str, seed: int | None) -> None:
        """Remember a request whose answer has this id."""
        if not self._count or seed is None:
            return
        data = await request.read()
        self._kept[id] = (request.path, data, seed)
        self._bytes += len(data)
        while self._kept and (len(self._kept) > self._count or self._bytes > MAX_BYTES):
            self._bytes -= len(self._kept.popitem(last=False)[1][1])

    def find(self, id: str, fingerprint: str) -> Recorded:
        """Raises NotFound."""
        if id not in self._kept:
            raise NotFound(
                f"there is no request {id!r}; it is too old, or --replay-requests is 0", param="id"
            )
        path, data, seed = self._kept[id]
        body = msgspec.json.decode(data)
        body.pop("stream", None)
        body.pop("stream_options", None)
        if path == "/generate":
            params = body.get("sampling_params") or {}
            several = params if isinstance(params, list) else [params]
            seeded = [{"seed": seed, **{k: v for k, v in p.items() if v is not None}} for p in several]
            body["sampling_params"] = seeded if isinstance(params, list) else seeded[0]
        else:
            body["seed"] = seed
        return Recorded(path, body, fingerprint)


RECORDER: web.AppKey[Recorder] = web.AppKey("recorder", Recorder)


@operation(answer=Recorded)
async def replay(request: web.Request) -> web.Response:
    """A request that can be sent again for the same tokens."""
    context = Context.of(request)
    found = request.app[RECORDER].find(request.match_info["id"], context.fingerprint)
    return as_json(found)


def install(app: web.Application, count: int) -> None:
    """The route, and a recorder of so many requests."""
    app[RECORDER] = Recorder(count)
    app.add_routes([web.get("/replay/{id}", replay)])
