"""Backends: what executes calls. Each is loaded when it is first named."""

from __future__ import annotations

from typing import Any

_HOMES = {
    "Backend": "runtime.backends.base",
    "Capabilities": "runtime.backends.base",
    "HttpBackend": "runtime.backends.http",
    "ModelInfo": "runtime.backends.base",
    "Scripted": "runtime.backends.scripted",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime.backends' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
