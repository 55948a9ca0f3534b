"""/openapi.json: the routes that are registered, with what each handler says of itself (operation.py).

Made once, when it is asked for the first time, from the router of the running application: a route cannot be
missing from it, and a route that is not served cannot be in it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web

from runtime.environment import own_version
from runtime.server.auth import ADMIN_ROUTES, OPEN_ROUTES, PAGE_ROUTES
from runtime.server.operation import Operation, operation, operation_of

DOCUMENT: web.AppKey[dict[str, Any]] = web.AppKey("openapi", dict)

_REASONS = {
    400: "The request is wrong: the message names the value, the limit and what to do.",
    401: "The API key is missing or wrong.",
    403: "The key is right, but not for this.",
    404: "There is no such model, request or object.",
    408: "The request did not arrive in time.",
    409: "The object is not in a state that allows this.",
    413: "The body is too large.",
    415: "The content type is not the one that is asked for.",
    429: "Too many requests wait already; Retry-After says when to come back.",
    499: "The request was aborted by its id before it had an answer.",
    431: "The header is too large.",
    507: "The server's disk, or its room for files, is full.",
    503: "The engine is starting, down or shutting down; Retry-After says when to come back.",
}
_EVERY = (400, 429, 431, 503)
_WITH_BODY = (404, 408, 413, 415)


def _error() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    inner = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": text,
            "code": text,
        },
    }
    return {"title": "Error", "type": "object", "required": ["error"], "properties": {"error": inner}}


def _refusal(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": _REASONS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"required": True, "schema": {"type": "string"}}}
    return answer


def _success(said: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, dict[str, Any]] = {}
    for kind in said.kinds:
        content[kind] = {"schema": {"type": "string"}}
        if kind == "application/json":
            content[kind] = {"schema": {"type": "object"} if said.answer is None else schemas[said.answer]}
        elif kind == "text/event-stream":  # 3.1 has no words for a sequence of events
            content[kind] = {}
    return {"description": "What was asked for.", "content": content}


def _entry(path: str, method: str, handler: Any, said: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    has_body = said.body is not None or bool(said.form)
    names = re.findall(r"\{(\w+)\}", path)
    errors = {*_EVERY, *said.errors, *(_WITH_BODY if has_body else ()), *((404,) if names else ())}
    errors |= set() if path in OPEN_ROUTES else {401, 403} if path in ADMIN_ROUTES else {401}
    responses = {str(said.status): _success(said, schemas)} | {str(s): _refusal(s) for s in sorted(errors)}
    words = re.sub(r"\W+", "_", path).strip("_") or "page"
    entry: dict[str, Any] = {
        "operationId": f"{method}_{words}",
        "summary": (handler.__doc__ or words).strip().partition("\n")[0],
        "responses": responses,
        "security": [] if path in OPEN_ROUTES | PAGE_ROUTES else [{"key": []}],
    }
    places = [("path", n, {"type": "string", "minLength": 1}) for n in names]
    places += [("query", n, dict(s)) for n, s in said.query.items()]
    places += [("header", n, dict(s)) for n, s in said.headers.items()]
    if places:
        entry["parameters"] = [
            {"name": n, "in": where, "required": where == "path", "schema": schema}
            for where, n, schema in places
        ]
    if said.body is not None:
        entry["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[said.body]}},
        }
    elif said.form:
        fields = {
            n: {"type": "string"} | ({"format": "binary"} if kind == "binary" else {})
            for n, kind in said.form.items()
        }
        form = {"type": "object", "properties": fields, "required": list(fields)}
        entry["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return entry


def document(app: web.Application) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application."""
    routes = []
    for route in app.router.routes():
        if route.resource is None or route.method in ("HEAD", "OPTIONS", "*"):
            continue
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical)
        routes.append((path, route.method.lower(), route.handler, operation_of(route.handler) or Operation()))
    types = [t for *_, said in routes for t in (said.body, said.answer) if t is not None]
    types = list(dict.fromkeys(types))
    found, parts = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(types, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, method, handler, said in sorted(routes, key=lambda r: r[:2]):
        paths.setdefault(path, {})[method] = _entry(path, method, handler, said, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sglc runtime", "version": own_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {"Error": _error(), **parts},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


@operation()
async def openapi(request: web.Request) -> web.Response:
    """This document."""
    app = request.app
    if not app[DOCUMENT]:
        app[DOCUMENT].update(document(app))
    return web.json_response(app[DOCUMENT])


def attach(app: web.Application) -> None:
    """Serve the document of an application; routes that are added later are in it too."""
    app[DOCUMENT] = {}
    app.add_routes([web.get("/openapi.json", openapi)])
