"""What handlers share: the engine, the options, who is running."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from runtime.api import Delta, Embed, Generate, SamplingParams
from runtime.config import EngineConfig, ServerConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.transport import error_of
from runtime.environment import own_version
from runtime.errors import Crowded, EngineError, InvalidRequest, ModelError, ModelNotFound, Overloaded
from runtime.reasoning import reasoning_tags
from runtime.server.limits import check_calls
from runtime.server.templates import read_template
from runtime.server.tools import tool_format
from runtime.server.tracing import Tracing
from runtime.tokenizer.chat import ChatTemplate

KEY: web.AppKey[Context] = web.AppKey("context", object)  # type: ignore[arg-type,valid-type]


class Context:
    """One server. `running` counts samples that were admitted and have not finished, `serving` the requests that are answered
    and came before the server began to close.

    chat_template   what makes a prompt of a conversation; `chat_stops` are the stop strings that go with it
    tool_format     how the model writes tool calls, if an option says so
    reasoning_tags  what is around its reasoning, if an option says so

    Raises EngineError for options that name what is not there.
    """

    def __init__(self, engine: AsyncEngine, server: ServerConfig) -> None:
        self.engine = engine
        self.server = server
        self.metrics = engine.live.counted
        endpoint = server.otlp_traces_endpoint
        self.tracing = None if endpoint is None else Tracing.to(endpoint, engine.config.name)
        self.started = int(time.time())
        self.running = 0
        self.serving = 0
        self.closing = False
        self._named: dict[str, Sequence[Generate | Embed]] = {}
        self.chat_template: ChatTemplate | None = None
        self.chat_stops: tuple[str, ...] = ()
        if server.chat_template is not None:
            self.chat_template, self.chat_stops = read_template(server.chat_template, engine.tokenizer)
        else:
            self.chat_template = engine.tokenizer.chat_template
        parser, family = server.tool_call_parser, server.reasoning_parser
        self.tool_format = None if parser is None else tool_format(parser)
        try:
            self.reasoning_tags = None if family is None else reasoning_tags(family)
        except ValueError as error:
            raise ModelError(f"--reasoning-parser: {error}") from None

    @classmethod
    def of(cls, request: web.Request) -> Context:
        return request.app[KEY]

    @property
    def config(self) -> EngineConfig:
        """The engine's, which changes when its weights do."""
        return self.engine.config

    async def update_weights(self, model_path: str, load_format: str) -> None:
        """See `AsyncEngine.update_weights`; answers have another fingerprint then."""
        await self.engine.update_weights(model_path, load_format)
        self.__dict__.pop("fingerprint", None)

    @property
    def model_name(self) -> str:
        return self.config.name

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound for a model that is not served here; none named is the one that is."""
        if name not in (None, "", "default", self.model_name, self.config.folder):
            raise ModelNotFound(
                f"the model {name!r} does not exist; this server has {self.model_name!r}", param="model"
            )

    def seeded(self, sampling: SamplingParams) -> SamplingParams:
        """With the seed that the engine is to use, so that the answer can name it."""
        if sampling.seed is not None:
            return sampling
        seed = self.config.random_seed
        return msgspec.structs.replace(sampling, seed=secrets.randbits(53) if seed is None else seed)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for servers whose answers to equal requests with equal seeds are meant to be equal."""
        facts: dict[str, Any] = {
            k: self.engine.info.get(k) for k in ("architecture", "dtype", "device", "context_length")
        }
        options = (
            "attention_backend",
            "sampling_backend",
            "kv_cache_dtype",
            "json_model_override_args",
            "load_format",
        )
        facts |= {k: getattr(self.config, k) for k in options}
        facts |= {"version": own_version(), "tokenizer": self.engine.tokenizer.digest}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        folder = Path(self.config.folder)
        for file in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
            if file.exists():
                with file.open("rb") as data:  # both ends of it: weights can be larger than a start may take
                    size = file.stat().st_size
                    digest.update(f"{file.name} {size}".encode() + data.read(1 << 16))
                    data.seek(max(size - (1 << 16), 0))
                    digest.update(data.read())
        return f"fp_{digest.hexdigest()[:16]}"

    def server_args(self) -> dict[str, Any]:
        """All options but secrets."""
        fields = dataclasses.asdict(self.config) | dataclasses.asdict(self.server)
        for name in ServerConfig.SECRETS:
            fields.pop(name)
        return fields | {"model_path": self.config.folder}

    def check(self, calls: Sequence[Generate | Embed]) -> None:
        """Raises InvalidRequest if the calls of one request ask for more than one may; to be known before any is
        looked into."""
        check_calls(self.server, calls)

    @contextlib.asynccontextmanager
    async def run(
        self, calls: Sequence[Generate | Embed], names: Mapping[str, Sequence[Generate | Embed]] | None = None
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """The deltas of the calls, which are counted while they run and end with the block. By its name, a call can be
        aborted meanwhile.

        Raises Crowded if there are too many, Overloaded if the server is closing, EngineDead while the engine is started
        again; InvalidRequest if a name is that of a running request, or the calls ask for more than they may.
        """
        self.check(calls)
        names = names or {}
        count = sum(c.sampling.n for c in calls)
        if self.closing:
            raise Overloaded("the server is shutting down")
        error = self.engine.failure or self.engine.down
        if error is not None:  # a stream that began could not say 503
            raise type(error)(error.message)
        if self.running + count > self.server.max_queued_requests + self.config.seats(
            self.engine.info["device"]
        ):
            raise Crowded(f"{self.running} sequences are running or waiting already; try again later")
        taken = next((n for n in names if n in self._named), None)
        if taken is not None:
            raise InvalidRequest(f"a request with the id {taken!r} is running; choose another", param="rid")
        self.running += count
        self._named |= names
        deltas = self.engine.generate(calls, backlog=self.server.max_stream_backlog)
        try:
            yield deltas if self.tracing is None else self.tracing.watched(deltas)
        finally:
            self.running -= count
            for name in names:
                del self._named[name]
            await deltas.aclose()  # type: ignore[attr-defined]

    def abort(self, name: str) -> bool:
        """End a request by its id; False if there is none. Its samples answer once more, with what they have."""
        for call in self._named.get(name, ()):
            self.engine.abort(call)
        return name in self._named

    @staticmethod
    def error(delta: Delta) -> EngineError:
        assert delta.finish is not None
        return error_of(str(delta.finish.matched), delta.finish.message or "the engine failed")
