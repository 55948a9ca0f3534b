"""What an operator asks of a server: metrics, and a trace of the engine."""

from __future__ import annotations

from aiohttp import web

from runtime.errors import Conflict, InvalidRequest, ModelError
from runtime.metrics import CONTENT_TYPE
from runtime.server import answers, bodies, errors
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
    """Begin a trace of the engine."""
    context = Context.of(request)
    _folder(context)
    return web.json_response(await context.engine.ask("start_profile"))


@operation()
async def stop_profile(request: web.Request) -> web.Response:
    """Write the trace to --profile-dir; the answer names the file."""
    context = Context.of(request)
    return web.json_response(await context.engine.ask("stop_profile", _folder(context)))


@operation(body=bodies.WeightsBody, answer=answers.Updated, errors=(409,))
async def update_weights(request: web.Request) -> web.Response:
    """Serve the weights of another folder. What runs ends first; if they cannot be read, the earlier ones stay."""
    body = await bodies.read(request, bodies.WeightsBody)
    try:
        await Context.of(request).update_weights(body.model_path, body.load_format)
    except (ModelError, InvalidRequest, Conflict) as error:
        status = 400 if isinstance(error, ModelError) else error.status
        told = errors.body(error.message, status, param=error.param or "model_path", code=error.code)
        told |= {"success": False, "message": told["error"]["message"]}
        return web.json_response(told, status=status)
    return web.json_response({"success": True, "message": f"the weights of {body.model_path} are served"})


def routes() -> list[web.RouteDef]:
    return [
        web.get("/metrics", metrics),
        web.post("/update_weights", update_weights),
        web.post("/update_weights_from_disk", update_weights),
        web.get("/start_profile", start_profile, allow_head=False),
        web.post("/start_profile", start_profile),
        web.get("/stop_profile", stop_profile, allow_head=False),
        web.post("/stop_profile", stop_profile),
    ]
