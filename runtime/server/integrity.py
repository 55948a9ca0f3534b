"""/debug/check: whether all that holds memory adds up, found by walking it. For tests, soaks and a doubting operator."""

from __future__ import annotations

import os

import msgspec
from aiohttp import web

from runtime.server import answers
from runtime.server.context import Context
from runtime.server.operation import operation


class Integrity(msgspec.Struct):
    """`problem` is null when every page and lock has exactly one owner. Of an idle server, all counts but `nodes`, `files`
    and the cached tokens are 0."""

    problem: str | None
    idle: bool
    nodes: int
    kv_cache: answers.KVCache
    num_running_reqs: int
    num_waiting_reqs: int
    calls: int
    admitted: int
    files: int


@operation(answer=Integrity)
async def check(request: web.Request) -> web.Response:
    """GET /debug/check: walks the KV cache and counts what is held."""
    context = Context.of(request)
    found = await context.engine.check()
    found |= {"admitted": context.running, "files": len(os.listdir("/proc/self/fd"))}
    return web.json_response(found)


def routes() -> list[web.RouteDef]:
    return [web.get("/debug/check", check, allow_head=False)]
