"""What an operator asks of a server: metrics, and a trace of the engine."""

from __future__ import annotations

from aiohttp import web

from runtime.errors import InvalidRequest
from runtime.metrics import CONTENT_TYPE
from runtime.server.context import Context
from runtime.server.operation import operation


@operation(kinds=("text/plain",))
async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, in Prometheus' format."""
    context = Context.of(request)
    engine = context.engine
    up = engine.failure is None and engine.down is None
    text = context.metrics.text(engine.latest if up else {}, engine.restarts, up)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def _folder(context: Context) -> str:
    if context.server.profile_dir is None:
        raise InvalidRequest("the server was started without --profile-dir; traces have no place to go")
    return context.server.profile_dir


@operation()
async def start_profile(request: web.Request) -> web.Response:
    """POST /start_profile: begin a trace of the engine."""
    context = Context.of(request)
    _folder(context)
    return web.json_response(await context.engine.ask("start_profile"))


@operation()
async def stop_profile(request: web.Request) -> web.Response:
    """POST /stop_profile: write the trace to --profile-dir; the answer names the file."""
    context = Context.of(request)
    return web.json_response(await context.engine.ask("stop_profile", _folder(context)))


def routes() -> list[web.RouteDef]:
    return [
        web.get("/metrics", metrics),
        web.post("/start_profile", start_profile),
        web.post("/stop_profile", stop_profile),
    ]
