"""Our own server as a backend: segments go over HTTP as they are, so the tokens are those of a local run."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import msgspec

from runtime.api import Delta, Generate, Prompt, Score, ScoreResult
from runtime.backends.base import Capabilities, ModelInfo
from runtime.backends.targets import OWN_CONSTRAINTS
from runtime.errors import BackendError, EngineError, InvalidRequest


class HttpBackend:
    """A `Backend` over `runtime serve` at `url`. `verify` is a CA file, or False to trust anyone.

    `connect` asks the server what it is; it raises BackendError if nobody answers.
    """

    def __init__(self, url: str, api_key: str | None = None, verify: str | bool | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._ssl: ssl.SSLContext | bool = True
        if verify is False:
            self._ssl = False
        elif isinstance(verify, str):
            self._ssl = ssl.create_default_context(cafile=verify)
        self._session: aiohttp.ClientSession | None = None
        self._model = ModelInfo(model_path="")
        self._info: dict[str, Any] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            name=f"server {self.url}",
            score=True,
            prefill=True,
            tokens=True,
            samples=True,
            logprobs=True,
            constraints=OWN_CONSTRAINTS,
            context=self._info.get("context_length"),
        )

    @property
    def model(self) -> ModelInfo:
        return self._model

    def connect(self) -> None:
        """Ask the server what it is; blocks."""
        import urllib.error
        import urllib.request

        context = self._ssl if isinstance(self._ssl, ssl.SSLContext) else None
        found = {}
        for route in ("get_model_info", "get_server_info"):
            request = urllib.request.Request(f"{self.url}/{route}", headers=self._headers)
            try:
                with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                    found[route] = json.load(answer)
            except urllib.error.HTTPError as error:
                raise BackendError(
                    f"{self.url}/{route} answered {error.code}: {error.read()[:300].decode(errors='replace')}"
                ) from None
            except (OSError, ValueError) as error:
                raise BackendError(
                    f"no server answers at {self.url}: {error}; start one with `runtime serve`"
                ) from None
        info = found["get_model_info"]
        self._model = ModelInfo(model_path=info["model_path"], jinja=info.get("chat_template"))
        self._info = found["get_server_info"]

    async def open(self) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)

    async def _post(self, route: str, body: Any) -> aiohttp.ClientResponse:
        await self.open()
        assert self._session is not None
        data = msgspec.json.encode(body)
        try:
            answer = await self._session.post(
                f"{self.url}{route}", data=data, headers={"Content-Type": "application/json"}
            )
        except aiohttp.ClientError as error:
            raise BackendError(f"{self.url} cannot be reached: {error}") from None
        if answer.status >= 400:
            raise await self._error(answer)
        return answer

    async def _error(self, answer: aiohttp.ClientResponse) -> EngineError:
        text = await answer.text()
        try:
            error = json.loads(text)["error"]
            message, param = error["message"], error.get("param")
        except (ValueError, KeyError, TypeError):
            message, param = text[:300], None
        if 400 <= answer.status < 500:
            return InvalidRequest(message, param=param)
        return BackendError(f"{self.url} answered {answer.status}: {message}")

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        """See `Backend.generate`."""
        numbered = [msgspec.structs.replace(r, id=str(i), messages=None) for i, r in enumerate(requests)]
        answer = await self._post("/v1/calls/generate", {"calls": numbered})
        try:
            async for line in answer.content:
                delta = msgspec.json.decode(line, type=Delta)
                yield msgspec.structs.replace(delta, id=requests[int(delta.id)].id)
        except aiohttp.ClientError as error:
            raise BackendError(f"{self.url} broke off: {error}") from None
        finally:
            answer.close()

    async def score(self, request: Score) -> ScoreResult:
        answer = await self._post("/v1/calls/score", request)
        return msgspec.json.decode(await answer.read(), type=ScoreResult)

    async def prefill(self, prompt: Prompt) -> None:
        (await self._post("/v1/calls/prefill", {"prompt": prompt})).release()

    async def flush_cache(self) -> bool:
        answer = await self._post("/flush_cache", {})
        return bool((await answer.json())["flushed"])

    async def server_info(self) -> dict[str, Any]:
        await self.open()
        assert self._session is not None
        async with self._session.get(f"{self.url}/get_server_info") as answer:
            return await answer.json()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
