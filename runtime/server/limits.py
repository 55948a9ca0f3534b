"""What is refused before it is looked into: large headers and bodies, and calls that ask for too much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import HttpVersion10, web
from aiohttp.web_protocol import RequestPayloadError

from runtime.api import Constraint, Embed, Generate
from runtime.config import Limits
from runtime.errors import InvalidRequest
from runtime.server import errors

_STREAMED = (
    "multipart/form-data",
    "application/octet-stream",
)  # bodies that their handlers read piece by piece
_CODINGS = ("identity", "gzip", "deflate")


def guard(limits: Limits) -> Any:
    """Bounds on header and body. A body is here when its handler begins, so no handler waits for a slow sender."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.version < HttpVersion10:
            return errors.response("HTTP/0.9 is not spoken here; use HTTP/1.1", 400, code="bad_request")
        size = sum(len(k) + len(v) + 4 for k, v in request.raw_headers)
        if size > limits.max_header_bytes:
            text = f"the header has {size} bytes; at most {limits.max_header_bytes} are taken"
            return errors.response(text, 431, code="header_too_large")
        if len(request.raw_headers) > limits.max_header_fields:
            text = f"the header has {len(request.raw_headers)} fields; at most {limits.max_header_fields} are taken"
            return errors.response(text, 431, code="header_too_large")
        if request.can_read_body and request.content_type not in _STREAMED:
            if (request.content_length or 0) > limits.max_request_bytes:
                raise web.HTTPRequestEntityTooLarge(limits.max_request_bytes)
            coding = request.headers.get("Content-Encoding", "identity").lower()
            if coding not in _CODINGS:
                text = f"the content encoding {coding!r} is not taken; send one of {', '.join(_CODINGS)}"
                return errors.response(text, 415, code="unsupported_media_type")
            try:
                async with asyncio.timeout(limits.body_timeout):
                    await request.read()
            except TimeoutError:
                text = f"the body did not arrive within {limits.body_timeout:g} s"
                late = errors.response(text, 408, code="body_timeout")
                late.force_close()
                return late
            except RequestPayloadError:
                return errors.response(
                    "the body is not what its header says: broken chunks, length or compression",
                    400,
                    code="bad_request",
                )
        return await handler(request)

    return check


def check_prompts(limits: Limits, count: int, param: str = "text") -> None:
    """Raises InvalidRequest if there are more prompts than sequences are allowed; before calls are made of them."""
    _at_most("the number of prompts", param, count, limits.max_sequences, "send several requests")


def check_calls(limits: Limits, calls: Sequence[Generate | Embed]) -> None:
    """Raises InvalidRequest, naming value and limit, if the calls of one request ask for more than it may."""
    sequences = sum(max(c.sampling.n, 1) for c in calls)
    _at_most("prompts times samples", "n", sequences, limits.max_sequences, "send several requests")
    for call in calls:
        s = call.sampling
        _at_most("n", "n", s.n, limits.max_samples, "send several requests")
        _at_most("the number of stop strings", "stop", len(s.stop), limits.max_stop_strings, "give fewer")
        _at_most(
            "the number of stop token ids",
            "stop_token_ids",
            len(s.stop_token_ids),
            limits.max_stop_strings,
            "give fewer",
        )
        if call.logprobs is not None:
            _at_most(
                "top logprobs", "top_logprobs", call.logprobs.top, limits.max_top_logprobs, "ask for fewer"
            )
        if s.constraint is not None:
            check_constraint(limits, s.constraint)


def check_constraint(limits: Limits, constraint: Constraint) -> None:
    """Raises InvalidRequest for a constraint that is too large or too deep to be tried."""
    kind, source = constraint.kind, constraint.source
    plain = kind in ("regex", "ebnf")
    most = limits.max_grammar_bytes if plain else limits.max_schema_bytes
    _at_most(
        f"the size of the {kind} in bytes",
        kind,
        len(source.encode("utf-8", "replace")),
        most,
        "make it smaller",
    )
    if not plain:
        _at_most(f"the depth of the {kind}", kind, _depth(source), limits.max_schema_depth, "make it flatter")


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text are nested; those inside of strings are no brackets."""
    depth = deepest = 0
    quoted = escaped = False
    for char in text:
        if quoted:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _at_most(what: str, param: str, value: int, limit: int, remedy: str) -> None:
    if value > limit:
        raise InvalidRequest(f"{what} is {value} but may be at most {limit}; {remedy}", param=param)
