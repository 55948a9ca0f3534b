"""One HTTP call, as a client without any library makes it, and waiting for what it causes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


def call(
    url: str, body: Any = None, *, method: str | None = None, kind: str = "application/json", **headers: str
) -> tuple[int, Any, Any]:
    """Status, body (JSON decoded) and headers."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind, **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] in ("{", "[") else text, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def events(url: str, body: Any, **headers: str) -> list[tuple[str, Any]]:
    """The events of a stream: (name, data)."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        blocks = [b for b in answer.read().decode().split("\n\n") if b]
    out = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        out.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return out


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    """Until `condition` holds; AssertionError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
