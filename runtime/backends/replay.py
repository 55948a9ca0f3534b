"""Run a request of a server again."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

from runtime.errors import BackendError, EngineError


def run_again(url: str, id: str, api_key: str | None = None) -> str:
    """The answer, as JSON, to the request that was answered under `id`. Raises EngineError with the server's message."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    base = url.rstrip("/")
    found = json.loads(_call(f"{base}/replay/{urllib.parse.quote(id, safe='')}", None, headers))
    return _call(base + found["path"], json.dumps(found["body"]).encode(), headers)


def _call(url: str, body: bytes | None, headers: dict[str, str]) -> str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        try:
            text = json.loads(error.read())["error"]["message"]
        except (ValueError, KeyError, TypeError):
            text = f"{url} answered {error.code}"
        raise EngineError(text) from None
    except OSError as error:
        raise BackendError(f"no server answers at {url}: {error}; start one with `runtime serve`") from None
