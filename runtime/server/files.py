"""/v1/files: what batches read and write. Uploads are streamed to the disk; a caller's name for a file is only ever shown."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Any, Literal, TypeVar

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from runtime.config import ServerConfig
from runtime.errors import EngineError, InvalidRequest
from runtime.server.answers import as_json
from runtime.server.bodies import NotJson
from runtime.server.operation import operation
from runtime.server.records import FileRecord, Idempotent
from runtime.server.store import StateStore
from runtime.server.uploads import Upload

STORE: web.AppKey[StateStore] = web.AppKey("store", StateStore)
LIMITS: web.AppKey[ServerConfig] = web.AppKey("file limits", ServerConfig)
_CHUNK = 1 << 18
T = TypeVar("T")
# What aiohttp raises for a form that is none. Part headers, lengths and encodings are asserted there.
_NO_FORM = (ValueError, RuntimeError, AssertionError, HttpProcessingError)
_PURPOSES = ("batch",)


PAGED = {
    "after": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 20},
}
ONCE = {"Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255}}


class Files(msgspec.Struct):
    """A page of files."""

    object: Literal["list"]
    data: list[FileRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct):
    id: str
    object: Literal["file"]
    deleted: bool


class TooLarge(EngineError):
    status = 413
    code = "too_large"


class TooSlow(EngineError):
    status = 408
    code = "body_timeout"


def key_of(request: web.Request, route: str, digest: str) -> Idempotent | None:
    """The caller's Idempotency-Key, if it sent one."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= 255:
        raise InvalidRequest(
            f"the Idempotency-Key has {len(key)} characters; 1 to 255 are allowed", param="Idempotency-Key"
        )
    return Idempotent(route, key, digest)


def page_of(request: web.Request) -> tuple[str | None, int]:
    """The `after` and `limit` of a list request."""
    limit = request.query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:6]) <= 10_000):
        raise InvalidRequest(f"limit is {limit[:20]!r} but must be between 1 and 10000", param="limit")
    return request.query.get("after"), int(limit[:6])


def page(records: list[Any], more: bool) -> web.Response:
    first, last = (records[0].id, records[-1].id) if records else (None, None)
    return as_json({"object": "list", "data": records, "first_id": first, "last_id": last, "has_more": more})


@operation(form={"file": "binary", "purpose": "string"}, headers=ONCE, answer=FileRecord, errors=(507,))
async def create(request: web.Request) -> web.Response:
    """POST /v1/files: a form with `file` and `purpose`."""
    store, limits = request.app[STORE], request.app[LIMITS]
    if request.content_type != "multipart/form-data":
        raise NotJson(f"the content type is {request.content_type!r}; send multipart/form-data")
    upload: Upload | None = None
    try:
        upload, filename, purpose, digest = await _read_form(request, store, limits)
        whole = hashlib.sha256(
            f"{digest}\0{filename}\0{purpose}".encode("utf-8", "surrogatepass")
        ).hexdigest()
        once = key_of(request, "files", whole)
        record = await asyncio.to_thread(store.add_file, upload, filename, purpose, once)
    except BaseException:
        if upload is not None:
            upload.discard()
        raise
    return as_json(record)


async def _read_form(
    request: web.Request, store: StateStore, limits: ServerConfig
) -> tuple[Upload, str, str, str]:
    """The content on the disk, its name, its purpose and the hash of its bytes."""
    upload: Upload | None = None
    filename, purpose, digest = "", None, hashlib.sha256()
    try:
        form = await request.multipart()
        while (part := await _within(limits.body_timeout, form.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("the form has a form in it; send the fields `file` and `purpose`")
            if part.name == "file" and upload is None:
                filename = (part.filename or "upload").replace("\\", "/").rsplit("/", 1)[-1][:255]
                upload = await asyncio.to_thread(store.begin_file)
                while chunk := await _within(limits.body_timeout, part.read_chunk(_CHUNK)):
                    digest.update(chunk)
                    if upload.size + len(chunk) > limits.max_file_bytes:
                        raise TooLarge(
                            f"the file is larger than {limits.max_file_bytes} bytes; split it", param="file"
                        )
                    await asyncio.to_thread(store.write, upload, chunk, limits.max_state_bytes)
            elif part.name == "purpose" and purpose is None:
                text = await _within(limits.body_timeout, part.read_chunk(256))
                purpose = text.decode("utf-8", "replace")
            else:
                raise InvalidRequest(
                    f"the form has the field {str(part.name)[:100]!r}, which is not known or comes twice; "
                    "send `file` and `purpose`"
                )
        if upload is None:
            raise InvalidRequest("the form has no field `file`; send the content there", param="file")
        if purpose not in _PURPOSES:
            raise InvalidRequest(f"purpose is {purpose!r}; it must be 'batch'", param="purpose")
        return upload, filename, purpose, digest.hexdigest()
    except _NO_FORM as error:
        if upload is not None:
            upload.discard()
        raise InvalidRequest("the form cannot be read; send multipart/form-data with a boundary") from error
    except BaseException:
        if upload is not None:
            upload.discard()
        raise


async def _within(seconds: float, read: Awaitable[T]) -> T:
    """What is read. Raises TooSlow if it does not come in time; a large file may take long, a silence may not."""
    try:
        async with asyncio.timeout(seconds):
            return await read
    except TimeoutError:
        raise TooSlow(f"nothing came for {seconds:g} s; send the file again") from None


_ORDERED = {
    **PAGED,
    "order": {"type": "string", "enum": ["asc", "desc"]},
    "purpose": {"type": "string", "enum": ["batch", "batch_output"]},
}


@operation(query=_ORDERED, answer=Files, errors=(404,))
async def listing(request: web.Request) -> web.Response:
    """GET /v1/files: newest first."""
    after, limit = page_of(request)
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order is {order[:20]!r} but must be asc or desc", param="order")
    purpose = request.query.get("purpose")
    if purpose not in (None, "batch", "batch_output"):
        raise InvalidRequest(
            f"purpose is {purpose[:20]!r} but must be batch or batch_output", param="purpose"
        )
    store = request.app[STORE]
    newest = order == "desc"
    records, more = await asyncio.to_thread(store.files, after, limit, newest_first=newest, purpose=purpose)
    return page(records, more)


@operation(answer=FileRecord)
async def show(request: web.Request) -> web.Response:
    """GET /v1/files/{id}: what is known of a file."""
    return as_json(await asyncio.to_thread(request.app[STORE].file, request.match_info["id"]))


@operation(kinds=("application/octet-stream",))
async def content(request: web.Request) -> web.StreamResponse:
    """GET /v1/files/{id}/content: the bytes."""
    path = await asyncio.to_thread(request.app[STORE].content, request.match_info["id"])
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    return web.FileResponse(path, headers=headers)


@operation(answer=Deleted, errors=(409,))
async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/files/{id}: not while an unfinished batch reads it."""
    id = request.match_info["id"]
    await asyncio.to_thread(request.app[STORE].delete_file, id)
    return as_json(Deleted(id, "file", True))


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/files", create),
        web.get("/v1/files", listing, allow_head=False),
        web.get("/v1/files/{id}", show, allow_head=False),
        web.get("/v1/files/{id}/content", content, allow_head=False),
        web.delete("/v1/files/{id}", delete),
    ]
