"""Functions of the user's own that a compiled program may call: `@sgl.host`.

    @sgl.host
    def look_up(query: str) -> str: ...

Called outside of a trace it is the function itself. While a program is traced, a call is a `host` node: the function runs when
the program runs, once for each call, in the order in which the program calls it, after all that the program has read
before. It gets real values. What its annotation says it returns is what the program may do with the result: a
`str` has the methods of strings, without an annotation the result can be appended, compared and handed on.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_type_hints

from sglc.lang.values import ACTIVE

_TYPES = {str: "str", bool: "bool", int: "int", float: "float"}


class Host:
    """A decorated function."""

    def __init__(self, func: Callable[..., Any]) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.name = f"{func.__module__}:{func.__qualname__}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracing = ACTIVE.get()
        return self.func(*args, **kwargs) if tracing is None else tracing.host(self, args, kwargs)

    @property
    def result(self) -> str:
        """The IR type of what it returns."""
        try:
            return _TYPES.get(get_type_hints(self.func).get("return", object), "any")
        except (NameError, TypeError):  # an annotation that cannot be read says nothing
            return "any"

    def positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position, defaults included. Raises TypeError for what cannot be given so."""
        bound = inspect.signature(self.func).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(f"{self.name} takes {next(iter(bound.kwargs))} by name only")
        return bound.args


def host(func: Callable[..., Any]) -> Host:
    """Let compiled programs call `func`; see the module."""
    return Host(func)


def find_host(name: str) -> Host | None:
    """The decorated function with this name, `module:qualified name`; None if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, Host) else None
