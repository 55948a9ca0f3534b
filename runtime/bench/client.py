"""Requests to a server and when their tokens came. Ours, or any that speaks OpenAI's API; answers are streamed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec

from runtime.bench.workload import Asked
from runtime.errors import BackendError, InvalidRequest

_LINE = 16 << 20  # bytes of an event; the native API repeats the whole text in each


@dataclass
class Served:
    """One request. Times are in seconds since the run began, `due` is when it should have been sent."""

    due: float
    sent: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of events that brought tokens
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        """To the first token."""
        return (self.arrivals[0] if self.arrivals else self.ended) - self.sent

    @property
    def e2e(self) -> float:
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        if self.tokens < 2 or not self.arrivals:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Between two events, as a reader sees them."""
        return [b - a for a, b in itertools.pairwise(self.arrivals)]


@dataclass(frozen=True)
class Piece:
    """What one event says: whether it brought tokens, and counts so far where it has them."""

    text: bool = False
    prompt_tokens: int | None = None
    tokens: int | None = None


class Api(Protocol):
    """A way to ask for one answer."""

    path: str

    def body(self, asked: Asked, model: str, *, full: bool, temperature: float) -> dict[str, Any]:
        """`full`: the answer goes on past tokens that would end it."""
        ...

    def read(self, event: dict[str, Any]) -> Piece: ...


class Native:
    path = "/generate"

    def body(self, asked: Asked, model: str, *, full: bool, temperature: float) -> dict[str, Any]:
        sampling = {"max_new_tokens": asked.new, "temperature": temperature, "ignore_eos": full}
        name = "text" if isinstance(asked.prompt, str) else "input_ids"
        return {name: asked.prompt, "sampling_params": sampling, "stream": True}

    def read(self, event: dict[str, Any]) -> Piece:
        info = event["meta_info"]  # ours counts in the last event, others in each
        return Piece(True, info.get("prompt_tokens"), info.get("completion_tokens"))


class Completions:
    path = "/v1/completions"

    def body(self, asked: Asked, model: str, *, full: bool, temperature: float) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": asked.prompt,
            "max_tokens": asked.new,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if full else {}),
        }

    def read(self, event: dict[str, Any]) -> Piece:
        usage = event.get("usage") or {}
        return Piece(self._brings(event), usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def _brings(self, event: dict[str, Any]) -> bool:
        return bool(event["choices"])


class Chat(Completions):
    path = "/v1/chat/completions"

    def body(self, asked: Asked, model: str, *, full: bool, temperature: float) -> dict[str, Any]:
        if not isinstance(asked.prompt, str):
            raise InvalidRequest("a chat takes text, not token ids; use --backend openai for these prompts")
        body = super().body(asked, model, full=full, temperature=temperature)
        del body["prompt"], body["max_tokens"]
        messages = [{"role": "user", "content": asked.prompt}]
        return {**body, "messages": messages, "max_completion_tokens": asked.new}

    def _brings(self, event: dict[str, Any]) -> bool:
        """The first chunk has only a role."""
        deltas = [choice.get("delta") or choice.get("message") or {} for choice in event["choices"]]
        return any(d.get(k) for d in deltas for k in ("content", "reasoning_content", "tool_calls"))


APIS: dict[str, Api] = {"openai": Completions(), "openai-chat": Chat(), "native": Native()}
# as SGLang's bench_serving calls them
APIS |= dict.fromkeys(("sglang", "sglang-native"), APIS["native"])
APIS |= dict.fromkeys(("sglang-oai", "vllm", "lmdeploy"), APIS["openai"])


class Client:
    """A server at `url`; a context that holds its connections."""

    def __init__(
        self,
        url: str,
        api: Api,
        api_key: str | None = None,
        extra: dict[str, Any] | None = None,
        timeout: float = 600,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api = api
        self.model = ""
        self.full = True
        self.stream = True
        self.temperature = 0.0
        self._extra = extra or {}
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=self._headers,
            timeout=self._timeout,
            read_bufsize=_LINE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "used outside of its context"
        return self._session

    async def facts(self) -> dict[str, Any]:
        """What the server says of itself. Raises BackendError if nobody answers."""
        listed = await self._get("/v1/models") or {}
        names = [m["id"] for m in listed.get("data", [])]
        self.model = self.model or (names[0] if names else "")
        info = await self._get("/get_server_info") or {}
        keys = ("model_path", "vocab_size", "context_length", "device", "dtype", "total_tokens")
        return {"url": self.url, "model": self.model, **{k: info[k] for k in keys if k in info}}

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            async with self.session.get(self.url + path) as answer:
                if answer.status in (404, 405):
                    return None
                if answer.status != 200:
                    raise BackendError(
                        f"{self.url}{path} answers {answer.status}: {(await answer.text())[:200]}"
                    )
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise BackendError(
                f"{self.url}{path}: {error or type(error).__name__}; is the server up?"
            ) from None

    async def flush(self) -> None:
        """Let the server forget cached prefixes. Raises BackendError if it cannot."""
        async with self.session.post(self.url + "/flush_cache") as answer:
            if answer.status != 200:
                raise BackendError(f"{self.url}/flush_cache answers {answer.status}; leave --flush-cache out")

    def body(self, asked: Asked) -> dict[str, Any]:
        """What is sent for it. Raises InvalidRequest where the API has no way to say it."""
        body = self.api.body(asked, self.model, full=self.full, temperature=self.temperature)
        if not self.stream:
            body["stream"] = False
            body.pop("stream_options", None)
        return {**body, **self._extra}

    async def ask(self, body: dict[str, Any], served: Served, now: Callable[[], float]) -> None:
        """Send one request and note what comes. What goes wrong is noted too, not raised."""
        served.sent = now()
        events = 0
        try:
            async with self.session.post(self.url + self.api.path, json=body) as answer:
                if answer.status != 200:
                    served.error = f"{answer.status}: {(await answer.text())[:200]}"
                else:
                    async for event in _events(answer) if self.stream else _whole(answer):
                        if "error" in event:
                            served.error = str(event["error"])[:200]
                            break
                        piece = self.api.read(event)
                        if piece.text:
                            events += 1
                            if self.stream:  # a whole answer shows no token before its end
                                served.arrivals.append(now())
                        served.prompt_tokens = piece.prompt_tokens or served.prompt_tokens
                        served.tokens = piece.tokens or served.tokens
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            served.error = f"{type(error).__name__}: {error}"[:200]
        served.ended = now()
        served.tokens = served.tokens or events  # a server that does not count is taken at one token an event


async def _whole(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The one answer that is not streamed."""
    yield msgspec.json.decode(await answer.read())


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """JSON of each server-sent event. Raises ValueError for a stream that ends before its [DONE]."""
    async for line in answer.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        yield msgspec.json.decode(data)
    raise ValueError("the stream ended before its [DONE]")


async def send(
    client: Client,
    asked: Sequence[Asked],
    due: Sequence[float],
    most: int | None = None,
    done: Callable[[], object] | None = None,
) -> list[Served]:
    """Send each request when it is due; while `most` run, the next ones wait. `done` is called at the end of each."""
    bodies = [client.body(a) for a in asked]
    began = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - began

    seats = asyncio.Semaphore(most or len(asked))

    async def one(body: dict[str, Any], served: Served) -> None:
        async with seats:
            await client.ask(body, served, now)
        if done is not None:
            done()

    found = [Served(at) for at in due]
    async with asyncio.TaskGroup() as tasks:
        for body, served in zip(bodies, found, strict=True):
            if (early := served.due - now()) > 0:
                await asyncio.sleep(early)
            tasks.create_task(one(body, served))
    return found
