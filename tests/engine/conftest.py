"""The engine that the tests of its answers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.config import EngineConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.engine.process import ProcessTransport


@pytest.fixture(scope="module", params=["thread", "process"])
def engine(request: pytest.FixtureRequest) -> Iterator[AsyncEngine]:
    """One small engine on the default model, in a thread and in a process."""
    config = EngineConfig(max_total_tokens=4096)
    engine = AsyncEngine(config, ProcessTransport(config) if request.param == "process" else None)
    yield engine
    engine.shutdown()
