"""Who may call: keys of clients and of the operator, and pages of other origins.

The route that was found decides what a request needs, never its path: what the router and a guard read differently is how
guards are passed by. Every route asks for a key but GET /health and, when none is sent, the files of the page: a browser has to load the
page before it can ask for the key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from runtime.config import ServerConfig
from runtime.errors import InvalidRequest
from runtime.server import errors
from runtime.server.operation import route_of
from runtime.server.page.routes import FILES, path_of

OPEN_ROUTES = frozenset({"/health"})
ADMIN_ROUTES = frozenset(
    {
        "/flush_cache",
        "/start_profile",
        "/stop_profile",
        "/debug/check",
        "/debug/fault",
        "/update_weights",
        "/update_weights_from_disk",
        "/page/state",  # shows the prompts of everybody
        "/page/abort",
    }
)
PAGE_ROUTES = frozenset(map(path_of, FILES))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Keys:
    """The keys of a server, as digests: nothing here can print one."""

    def __init__(self, clients: Iterable[str], admin: str | None = None) -> None:
        self._clients = tuple(_digest(k) for k in clients)
        self._admin = None if admin is None else _digest(admin)

    @classmethod
    def of(cls, server: ServerConfig) -> Keys:
        """Raises InvalidRequest for a file that cannot be read, and for empty keys."""
        clients = list(server.api_key or ())
        if server.api_key_file is not None:
            try:
                lines = Path(server.api_key_file).read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidRequest(
                    f"--api-key-file {server.api_key_file!r} cannot be read: {error}"
                ) from None
            if not lines:
                raise InvalidRequest(f"--api-key-file {server.api_key_file!r} holds no key")
            clients += lines
        if not all(k.strip() for k in [*clients, server.admin_api_key or "-"]):
            raise InvalidRequest("an API key is empty; give one of at least one character")
        return cls(clients, server.admin_api_key)

    def refusal(self, given: str | None, route: str | None) -> int | None:
        """The status of a refusal; None for a request that may pass. Takes equally long for every wrong key."""
        if route in OPEN_ROUTES or (given is None and route in PAGE_ROUTES):
            return None
        digest = _digest(given or "")
        client = sum(hmac.compare_digest(digest, k) for k in self._clients) > 0
        admin = self._admin is not None and hmac.compare_digest(digest, self._admin)
        if admin:
            return None
        if route in ADMIN_ROUTES and self._admin is not None:
            return 403 if client else 401
        return None if client or not self._clients else 401


def _given(request: web.Request) -> str | None:
    if (header := request.headers.get("Authorization")) is None:
        return request.headers.get("x-api-key")
    kind, _, key = header.partition(" ")
    return key.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")


def guard(keys: Keys) -> Any:
    """Refuses requests without a fitting key."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        status = keys.refusal(_given(request), route_of(request))
        if status == 401:
            return errors.response(
                "the API key is missing or wrong; send it as a bearer token or as x-api-key",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if status is not None:
            return errors.response("this route needs the admin key", status, code="admin_key_needed")
        return await handler(request)

    return check


class Origins:
    """Which web pages may call: those of this server, and those that are listed. A browser sends along where the page
    came from; other clients send nothing and are not concerned."""

    def __init__(self, host: str, allowed: Iterable[str]) -> None:
        self._local = _is_loopback(host)
        self._allowed = frozenset(o.rstrip("/") for o in allowed)

    def allows(self, origin: str, host: str) -> bool:
        return "*" in self._allowed or origin in self._allowed or self._own(origin, host)

    def _own(self, origin: str, host: str) -> bool:
        """A page that came from this server. On loopback a name must be a loopback name: any other can be made to
        point here by whoever owns it."""
        if urlsplit(origin).netloc != host:
            return False
        return not self._local or _is_loopback(urlsplit(f"//{host}").hostname or "")

    def headers(self, origin: str) -> dict[str, str]:
        """What lets a page of a listed origin read an answer."""
        if not self._allowed & {"*", origin}:
            return {}
        allow = "*" if "*" in self._allowed else origin
        exposed = "x-request-id, retry-after"
        return {
            "Access-Control-Allow-Origin": allow,
            "Access-Control-Expose-Headers": exposed,
            "Vary": "Origin",
        }


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def same_origin(origins: Origins) -> Any:
    """Refuses pages of other origins, and answers their questions whether they may call."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is None:
            return await handler(request)
        try:
            allowed = origins.allows(origin, request.headers.get("Host", ""))
        except ValueError:  # not a URL
            allowed = False
        if not allowed:
            return errors.response(
                "web pages of this origin may not call the server; list it with --cors-allow-origin",
                403,
                code="origin_not_allowed",
            )
        if request.method == "OPTIONS" and (method := request.headers.get("Access-Control-Request-Method")):
            asked = request.headers.get("Access-Control-Request-Headers", "")
            more = {"Access-Control-Allow-Methods": method, "Access-Control-Allow-Headers": asked}
            return web.Response(status=204, headers={**more, "Access-Control-Max-Age": "600"})
        return await handler(request)

    return check
