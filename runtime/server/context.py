"""What handlers share: the engine, the options, who is running."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from aiohttp import web

from runtime.api import Delta, Finish, Generate
from runtime.config import EngineConfig, ServerConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.transport import error_of
from runtime.errors import EngineError, NotFound, Overloaded

KEY: web.AppKey[Context] = web.AppKey("context", object)  # type: ignore[arg-type,valid-type]


class Context:
    """One server. `running` counts samples that were admitted and have not finished."""

    def __init__(self, engine: AsyncEngine, config: EngineConfig, server: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.server = server
        self.running = 0
        self.closing = False
        self._named: dict[str, set[AsyncIterator[Delta]]] = {}
        self._aborted: set[str] = set()

    @classmethod
    def of(cls, request: web.Request) -> Context:
        return request.app[KEY]

    @property
    def model_name(self) -> str:
        return self.config.name

    def check_model(self, name: str | None) -> None:
        """Raises NotFound for a model that is not served here; none named is the one that is."""
        if name not in (None, "", "default", self.model_name, self.config.folder):
            raise NotFound(
                f"the model {name!r} does not exist; this server has {self.model_name!r}", param="model"
            )

    def server_args(self) -> dict[str, Any]:
        """All options but secrets."""
        fields = dataclasses.asdict(self.config) | dataclasses.asdict(self.server)
        fields.pop("api_key")
        return fields | {"model_path": self.config.folder}

    @contextlib.contextmanager
    def admitted(self, calls: Sequence[Generate]) -> Iterator[None]:
        """Count the calls while they run. Raises Overloaded if there are too many, or the server is closing."""
        count = sum(c.sampling.n for c in calls)
        if self.closing:
            raise Overloaded("the server is shutting down")
        if self.running + count > self.server.max_queued_requests + self.config.seats(
            self.engine.info["device"]
        ):
            raise Overloaded(f"{self.running} requests are running or waiting already; try again later")
        self.running += count
        try:
            yield
        finally:
            self.running -= count

    async def run(self, calls: Sequence[Generate], names: Sequence[str]) -> AsyncIterator[Delta]:
        """The calls' deltas, until they finish or one of the names is aborted."""
        deltas = self.engine.generate(calls)
        for name in names:
            self._named.setdefault(name, set()).add(deltas)
        try:
            async for delta in deltas:
                yield delta
                if self._aborted.intersection(names):
                    break
            if self._aborted.intersection(names):
                for i, call in enumerate(calls):
                    for index in range(call.sampling.n):
                        yield Delta(id=str(i), index=index, finish=Finish(type="abort"))
        finally:
            for name in names:
                self._named.pop(name, None)
                self._aborted.discard(name)
            await deltas.aclose()  # type: ignore[attr-defined]

    def abort(self, name: str) -> bool:
        """End a request by its id; False if there is none."""
        if name not in self._named:
            return False
        self._aborted.add(name)
        return True

    @staticmethod
    def error(delta: Delta) -> EngineError:
        assert delta.finish is not None
        return error_of(str(delta.finish.matched), delta.finish.message or "the engine failed")
