"""The inference runtime: `Engine`, `AsyncEngine` and what they take. Loads torch only when an engine is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.api import SamplingParams
    from runtime.config import EngineConfig
    from runtime.engine.async_engine import AsyncEngine
    from runtime.engine.engine import Engine

__all__ = ["AsyncEngine", "Engine", "EngineConfig", "SamplingParams"]

_HOMES = {
    "AsyncEngine": "runtime.engine.async_engine",
    "Engine": "runtime.engine.engine",
    "EngineConfig": "runtime.config",
    "SamplingParams": "runtime.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
