"""The lines of a batch's input, and those of its results.

A line is known by its `custom_id` and the hash of its request, not by its place: so a journal entry cannot be taken for another
request's, and a batch can take over the answers of an earlier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

MOST_LINES = 50_000
LONGEST_LINE = 8 << 20


class Request(msgspec.Struct, frozen=True):
    """The fields of a line, as the API defines them."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Streamed(msgspec.Struct):
    stream: bool | None = None


class Line(msgspec.Struct, frozen=True):
    """One line of the input. `problem` is (code, message) if it cannot be sent; such a line fails alone."""

    number: int
    key: bytes
    custom_id: str | None
    body: bytes
    problem: tuple[str, str] | None = None


def read_lines(path: Path, endpoint: str) -> Iterator[Line]:
    """The lines that are not blank, in order."""
    seen: set[bytes] = set()
    with path.open("rb") as file:
        number = 0
        while data := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(data) > LONGEST_LINE:
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield _bad(number, None, "line_too_long", f"the line is longer than {LONGEST_LINE} bytes")
            elif data.strip():
                yield _parse(number, data, endpoint, seen)


def _parse(number: int, data: bytes, endpoint: str, seen: set[bytes]) -> Line:
    try:
        request = msgspec.json.decode(data, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _bad(number, _custom_id(data), "invalid_line", f"not a request of a batch: {error}")
    if not 0 < len(request.custom_id) <= 512:
        size = len(request.custom_id)
        return _bad(
            number, None, "invalid_custom_id", f"custom_id has {size} characters; 1 to 512 are allowed"
        )
    name = hashlib.sha256(request.custom_id.encode("utf-8", "surrogatepass")).digest()
    if name in seen:
        return _bad(
            number, request.custom_id, "duplicate_custom_id", "an earlier line has the same custom_id"
        )
    seen.add(name)
    problem = None
    if request.method != "POST":
        problem = ("invalid_method", f"method is {request.method[:20]!r}; it must be 'POST'")
    elif request.url != endpoint:
        problem = ("mismatched_url", f"url is {request.url[:100]!r} but the batch is for {endpoint!r}")
    else:
        try:
            if msgspec.json.decode(request.body, type=_Streamed).stream:
                problem = ("streaming", "a line of a batch cannot stream; leave `stream` out")
        except msgspec.MsgspecError:
            pass  # the endpoint says what is wrong with the body
    body = bytes(request.body)
    key = hashlib.sha256(b"%s\0%s\0%s" % (name, endpoint.encode(), body)).digest()
    return Line(number, key, request.custom_id, body, problem)


def _bad(number: int, custom_id: str | None, code: str, message: str) -> Line:
    key = hashlib.sha256(b"line %d" % number).digest()
    return Line(number, key, custom_id, b"", (code, f"line {number}: {message}"))


def _custom_id(data: bytes) -> str | None:
    """The custom_id of a line that is JSON but no request, to name it in the error file."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found[:512] if isinstance(found, str) else None


def answer(line: Line, status: int, request_id: str, body: Any) -> bytes:
    """A line of the output file, or of the error file if the endpoint refused the request."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _result(line, response, None)


def failure(line: Line, code: str, message: str) -> bytes:
    """A line of the error file, for a request that was not sent or got no answer."""
    return _result(line, None, {"code": code, "message": message})


def _result(line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    value = {
        "id": f"batch_req_{line.key.hex()[:32]}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(value) + b"\n"
