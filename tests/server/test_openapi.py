"""The OpenAPI document says what is served: each route, its body, its statuses."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import jsonschema
import pytest
from aiohttp import web

from runtime.config import EngineConfig, ServerConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.server.app import build
from runtime.server.context import Context
from runtime.server.launch import ServerProcess
from runtime.server.openapi import document
from runtime.server.operation import operation_of


@pytest.fixture(scope="module")
def app() -> web.Application:
    """The application that `runtime serve` runs; its engine is never started."""
    config = EngineConfig()
    return build(Context(AsyncEngine(config), ServerConfig(port=0)))


def registered(app: web.Application) -> dict[tuple[str, str], Any]:
    routes = [
        r for r in app.router.routes() if r.resource is not None and r.method not in ("HEAD", "OPTIONS")
    ]
    return {(plain(r.resource.canonical), r.method.lower()): r.handler for r in routes}


def plain(path: str) -> str:
    """Without what a part of the path must look like."""
    return re.sub(r"\{(\w+)[^}]*\}", r"{\1}", path)


def test_every_route_is_in_the_document_and_nothing_else(app: web.Application) -> None:
    said = {(plain(p), m) for p, methods in document(app)["paths"].items() for m in methods}
    assert said == set(registered(app))


def test_every_handler_says_what_it_takes(app: web.Application) -> None:
    silent = [f"{m.upper()} {p}" for (p, m), h in registered(app).items() if operation_of(h) is None]
    assert not silent, f"mark these with @operation (runtime/server/operation.py): {', '.join(silent)}"
    undescribed = [p for (p, _), h in registered(app).items() if not (h.__doc__ or "").strip()]
    assert not undescribed


def test_the_document_is_valid_and_complete(app: web.Application) -> None:
    found = document(app)
    schemas = found["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = {r.split('"')[0] for r in json.dumps(found).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    names = [o["operationId"] for methods in found["paths"].values() for o in methods.values()]
    assert len(names) == len(set(names))
    for path, methods in found["paths"].items():
        for entry in methods.values():
            assert "200" in entry["responses"] and "400" in entry["responses"]
            placed = {p["name"] for p in entry.get("parameters", []) if p["in"] == "path"}
            assert placed == {part.strip("{}") for part in path.split("/") if part.startswith("{")}


def test_the_server_serves_its_document(server: ServerProcess) -> None:
    served = json.load(urllib.request.urlopen(f"{server.url}/openapi.json"))
    chat = served["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ChatBody"
    }
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"400", "401", "404", "413", "415", "429", "503"} <= set(chat["responses"])
    error = schema_error(served)
    try:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", b"{"))
    except urllib.request.HTTPError as refused:
        jsonschema.validate(json.load(refused), error)
    else:
        raise AssertionError("a broken body was accepted")


def schema_error(served: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = served["components"]["schemas"]["Error"]
    return schema


def test_allow_names_the_methods_that_are_documented(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    for path, methods in paths.items():
        asked = urllib.request.Request(server.url + re.sub(r"\{\w+\}", "x", path), method="PROPFIND")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        allowed = {m.strip().lower() for m in refused.value.headers["Allow"].split(",")}
        assert refused.value.code == 405 and allowed - {"head", "options"} == set(methods), path
