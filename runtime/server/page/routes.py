"""The page at `/`: its files, the state it shows, and its abort buttons.

The files hold nothing secret and are given to anybody; the state and the buttons ask for the key like every other
route. The policy lets the page load and reach nothing but this server.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from runtime.errors import NotFound
from runtime.server import answers, bodies
from runtime.server.context import Context
from runtime.server.operation import operation
from runtime.server.page.state import HISTORY, History, state_of, watch

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "api.js": "text/javascript",
    "charts.js": "text/javascript",
    "live.js": "text/javascript",
    "playground.js": "text/javascript",
    "main.js": "text/javascript",
}


class PageAbortBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /page/abort: the id of a running sample, as the state names it."""

    id: str


def path_of(name: str) -> str:
    """Where a file of the page is served."""
    return "/" if name == "index.html" else f"/page/{name}"


def _file(name: str) -> web.RouteDef:
    data = (Path(__file__).parent / name).read_bytes()

    @operation(kinds=(FILES[name],))
    async def send(request: web.Request) -> web.Response:
        return web.Response(body=data, content_type=FILES[name], charset="utf-8", headers=_HEADERS)

    send.__doc__ = f"The page's {name}."
    return web.get(path_of(name), send)


@operation()
async def state(request: web.Request) -> web.Response:
    """What the server does now and did in the last minutes, as the page shows it."""
    answer = await state_of(Context.of(request), request.app[HISTORY])
    return web.json_response(answer, headers={"Cache-Control": "no-store"})


@operation(body=PageAbortBody, answer=answers.Aborted)
async def abort(request: web.Request) -> web.Response:
    """End one running sample; its caller gets what it has, finished by `abort`."""
    body = await bodies.read(request, PageAbortBody)
    if not Context.of(request).engine.end_sample(body.id):
        raise NotFound(f"no sample {body.id!r} is running", param="id")
    return web.json_response({"aborted": body.id})


def attach(app: web.Application, context: Context) -> None:
    """Give an application the page."""
    history = History(context.engine)
    app[HISTORY] = history
    app.cleanup_ctx.append(partial(watch, history=history))
    app.add_routes([_file(name) for name in FILES])
    app.add_routes([web.get("/page/state", state), web.post("/page/abort", abort)])
