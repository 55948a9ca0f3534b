"""A server whose folders are run without an installation answers like any other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from runtime import environment
from runtime.config import EngineConfig, ServerConfig
from runtime.engine.async_engine import AsyncEngine
from runtime.server.context import Context


def test_the_version_of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = environment.own_version()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    assert environment.own_version() == "source" != installed
    assert environment.environment()["torch"] == "not installed"
    context = Context(AsyncEngine(EngineConfig(device="cpu")), ServerConfig())
    assert context.fingerprint.startswith("fp_")
