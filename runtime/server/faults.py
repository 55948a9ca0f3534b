"""POST /debug/fault: failures on purpose, for tests. The route exists only with --debug-faults."""

from __future__ import annotations

import asyncio
import resource
from typing import Literal

import msgspec
from aiohttp import web

from runtime.engine.faults import Fault
from runtime.server import bodies
from runtime.server.context import Context
from runtime.server.operation import operation


class FaultBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to go wrong: see runtime.engine.faults.Fault; and `disk_full`, where the HTTP process can write to no file
    for `seconds`."""

    kind: Literal["nan", "error", "slow", "hang", "die", "disk_full"]
    seconds: float = 1.0
    steps: int = 1


@operation(body=FaultBody)
async def fault(request: web.Request) -> web.Response:
    """POST /debug/fault: let something go wrong."""
    body = await bodies.read(request, FaultBody)
    if body.kind == "disk_full":
        _fill_disk(body.seconds)
    else:
        wanted = Fault(kind=body.kind, seconds=body.seconds, steps=body.steps)
        await Context.of(request).engine.ask("fault", msgspec.json.encode(wanted).decode())
    return web.json_response({})


def _fill_disk(seconds: float) -> None:
    """Every write of this process to a file fails until then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    asyncio.get_running_loop().call_later(seconds, resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))


def routes() -> list[web.RouteDef]:
    return [web.post("/debug/fault", fault)]
