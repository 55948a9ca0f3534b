"""A model in this process as a backend. torch is loaded when it is opened, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.config import EngineConfig

if TYPE_CHECKING:
    from runtime.engine.async_engine import AsyncEngine


def open_local(model_path: str | None = None, **options: Any) -> AsyncEngine:
    """An AsyncEngine with its model loaded; it is a `Backend`. Options are the fields of EngineConfig.

    Raises EngineError if the model cannot be loaded.
    """
    from runtime.engine.async_engine import AsyncEngine

    engine = AsyncEngine(EngineConfig.of({"model_path": model_path, **options}))
    engine.start()
    return engine
