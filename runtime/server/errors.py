"""One shape for every error: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from runtime.errors import EngineError, InvalidRequest

log = logging.getLogger("runtime.server")
UNEXPECTED = "the server failed on this request; its log says more"
LIMIT = 8192  # bytes of a message as JSON; a caller's own value may be quoted in it
_OURS = re.compile(r"(?:/[\w.\-]+){2,}|0x[0-9a-fA-F]{4,}")  # paths and addresses of this machine


def _cut(text: str, limit: int) -> str:
    """The longest beginning that takes at most `limit` bytes of JSON."""
    if len(text) * 12 <= limit:  # no character takes more
        return text
    size = 0
    for i, character in enumerate(text):
        size += len(json.dumps(character)) - 2
        if size > limit - 3:
            return text[:i] + "..."
    return text


@contextlib.contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """What is said of fields of `SamplingParams` is said by the names that the caller sent."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is None or error.param not in names:
            raise
        ours = re.compile(rf"\b({'|'.join(names)})\b")
        message = ours.sub(lambda found: names[found[0]], error.message)
        raise type(error)(message, param=names[error.param]) from None


class Ended(Exception):
    """A response that has begun was ended with an error; nothing more is to be sent."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__("the response has ended with an error")
        self.response = response


def body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    type_ = kind.get(status, "invalid_request_error" if status < 500 else "server_error")
    if status >= 500:  # what went wrong is ours to know
        message = _OURS.sub("...", message)
    param = None if param is None else _cut(param, 1024)
    return {"error": {"message": _cut(message, LIMIT), "type": type_, "param": param, "code": code}}


def response(
    message: str, status: int, *, param: str | None = None, code: str | None = None, **options: Any
) -> web.Response:
    headers = dict(options.get("headers", {}))
    if status in (429, 503):
        headers.setdefault("Retry-After", "1")
    return web.json_response(body(message, status, param=param, code=code), status=status, headers=headers)


def of(error: EngineError) -> web.Response:
    return response(error.message, error.status, param=error.param, code=error.code)


@web.middleware
async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn whatever goes wrong into the one shape; nothing of ours shows but a message."""
    try:
        return await handler(request)
    except Ended as ended:
        return ended.response
    except EngineError as error:
        return of(error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not allowed for {request.path}; use {allowed}"
        return response(message, 405, code="method_not_allowed", headers={"Allow": allowed})
    except web.HTTPNotFound:
        return response(f"there is no route {request.method} {request.path}", 404, code="not_found")
    except web.HTTPRequestEntityTooLarge as error:
        return response(
            f"the body is larger than {error.max_size if hasattr(error, 'max_size') else 'allowed'} bytes",
            413,
            code="too_large",
        )
    except web.HTTPException as error:
        if error.status >= 400:
            return response(error.reason, error.status)
        raise
    except ConnectionResetError:
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return response(UNEXPECTED, 500, code="internal_error")
