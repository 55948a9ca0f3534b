"""/v1/batches: many requests in a file, answered beside everything else; and the store's life in the application."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
from aiohttp import web

from runtime.errors import InvalidRequest, NotFound, Overloaded
from runtime.folders import PrivateFolder
from runtime.server import bodies, files
from runtime.server.answers import as_json
from runtime.server.batch_runner import BatchRunner
from runtime.server.context import Context
from runtime.server.files import ONCE, PAGED, STORE, key_of, page, page_of
from runtime.server.operation import operation
from runtime.server.records import BatchRecord
from runtime.server.store import StateStore, now

RUNNER: web.AppKey[BatchRunner] = web.AppKey("batches", BatchRunner)
MOST_UNFINISHED = 1000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_WINDOW = 7 * 86400


class BatchBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/batches. `resume_from` names an earlier batch: its good answers to equal lines are taken over."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    resume_from: str | None = None


class Batches(msgspec.Struct):
    """A page of batches."""

    object: Literal["list"]
    data: list[BatchRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _seconds(window: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST_WINDOW:
        raise InvalidRequest(
            f"completion_window is {window[:20]!r}; give a time like '24h', at most '7d'",
            param="completion_window",
        )
    return seconds


@operation(body=BatchBody, headers=ONCE, answer=BatchRecord, errors=(507,))
async def create(request: web.Request) -> web.Response:
    """POST /v1/batches."""
    store, runner = request.app[STORE], request.app[RUNNER]
    body = await bodies.read(request, BatchBody)
    if body.endpoint not in runner.endpoints:
        known = ", ".join(runner.endpoints)
        raise InvalidRequest(
            f"endpoint is {body.endpoint[:100]!r}; it must be one of {known}", param="endpoint"
        )
    seconds = _seconds(body.completion_window)
    metadata = body.metadata or {}
    if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
        raise InvalidRequest(
            "metadata takes at most 16 pairs, keys of 64 characters and values of 512", param="metadata"
        )
    try:
        source = await asyncio.to_thread(store.file, body.input_file_id)
    except NotFound as error:
        raise NotFound(error.message, param="input_file_id") from None
    if source.purpose != "batch":
        raise InvalidRequest(
            f"file {source.id} was made for {source.purpose!r}; upload it with purpose 'batch'",
            param="input_file_id",
        )
    if body.resume_from is not None:
        await asyncio.to_thread(store.batch, body.resume_from)
    if len(await asyncio.to_thread(store.unfinished)) >= MOST_UNFINISHED:
        raise Overloaded(f"{MOST_UNFINISHED} batches are unfinished already; try again later")
    created = now()
    record = BatchRecord(
        id=f"batch_{secrets.token_hex(16)}",
        endpoint=body.endpoint,
        input_file_id=source.id,
        completion_window=body.completion_window,
        status="validating",
        created_at=created,
        expires_at=created + seconds,
        metadata=body.metadata,
        resume_from=body.resume_from,
    )
    digest = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()
    once = key_of(request, "batches", digest)
    record, new = await asyncio.to_thread(store.add_batch, record, once)
    if new:
        runner.submit(record.id)
    return as_json(record)


@operation(query=PAGED, answer=Batches, errors=(404,))
async def listing(request: web.Request) -> web.Response:
    """GET /v1/batches: newest first."""
    after, limit = page_of(request)
    return page(*await asyncio.to_thread(request.app[STORE].batches, after, limit))


@operation(answer=BatchRecord)
async def show(request: web.Request) -> web.Response:
    """GET /v1/batches/{id}: how far it is."""
    return as_json(await asyncio.to_thread(request.app[STORE].batch, request.match_info["id"]))


@operation(answer=BatchRecord, errors=(409, 507))
async def cancel(request: web.Request) -> web.Response:
    """POST /v1/batches/{id}/cancel: what is done stays; running lines are aborted."""
    id = request.match_info["id"]
    move = request.app[STORE].move
    record = await asyncio.to_thread(move, id, "cancelling", only_from=("validating", "in_progress"))
    request.app[RUNNER].cancel(id)
    return as_json(record)


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/batches", create),
        web.get("/v1/batches", listing, allow_head=False),
        web.get("/v1/batches/{id}", show, allow_head=False),
        web.post("/v1/batches/{id}/cancel", cancel),
    ]


def install(app: web.Application, context: Context) -> None:
    """Add the routes of files and batches, and open the store while the application runs. Call it after all other
    routes are added: those are what lines can be sent to."""
    app[files.LIMITS] = context.server
    app.add_routes(files.routes() + routes())

    async def life(app: web.Application) -> AsyncIterator[None]:
        private = PrivateFolder()
        given = context.server.state_dir
        try:
            folder = Path(given) if given else private.path / "state"
            store = app[STORE] = await asyncio.to_thread(StateStore, folder)
            runner = app[RUNNER] = BatchRunner(context, store, app, context.server.batch_concurrency)
            await runner.start(private.path / "lines")
            yield
            await runner.close()
            await asyncio.to_thread(store.close)
        finally:
            private.close()

    app.cleanup_ctx.append(life)
