"""The pure operations on strings and scalars that a plan may hold: their meaning, in one table.

The compiler folds constants with it, the executor and the server run it, and the tests' oracle uses it, so
they cannot differ. Each is a total function of its operands, or raises ComputeError that says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.reasoning import split_reasoning


class ComputeError(ValueError):
    """An operation that has no result for these operands, such as `int` of text that is not a number.

    `__cause__` is what Python raises for the same operation.
    """


@dataclass(frozen=True, slots=True)
class Operation:
    """`takes`: types of the operands; the last one repeats if `variadic`. `total`: never raises."""

    result: str
    takes: tuple[str, ...]
    run: Callable[..., Any]
    variadic: bool = False
    total: bool = True


def _number(kind: Callable[[str], Any]) -> Callable[[Any], Any]:
    def convert(text: Any) -> Any:
        try:
            return kind(text)
        except (ValueError, OverflowError) as error:
            raise ComputeError(f"{kind.__name__}({text!r}): {error}") from error

    return convert


def _item(values: Any, index: Any) -> Any:
    try:
        return values[index]
    except (IndexError, KeyError, TypeError) as error:
        size = f" of {len(values)}" if hasattr(values, "__len__") else ""
        raise ComputeError(f"item {index!r}{size} does not exist in {values!r}") from error


def _split(text: str, separator: str | None, most: int) -> list[str]:
    try:
        return text.split(separator, most)
    except ValueError as error:
        raise ComputeError(f"split({separator!r}): {error}") from error


def _json_get(text: Any, *path: Any) -> Any:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise ComputeError(f"json_get: {text!r} is not JSON: {error}") from error
    for key in path:
        value = _item(value, key)
    return value


_CONVERSIONS: Mapping[str, Callable[[Any], str]] = MappingProxyType({"s": str, "r": repr, "a": ascii})


def _format(value: Any, conversion: str, spec: str) -> str:
    if conversion:
        value = _CONVERSIONS[conversion](value)
    try:
        return format(value, spec)
    except ValueError as error:
        raise ComputeError(f"format({value!r}, {spec!r}): {error}") from error


def _pack(kind: str, keys: Any, *items: Any) -> Any:
    if kind == "dict":
        return dict(zip(keys, items, strict=True))
    return tuple(items) if kind == "tuple" else list(items)


def _operation(
    result: str, *takes: str, run: Callable[..., Any], variadic: bool = False, total: bool = True
) -> Operation:
    return Operation(result, takes, run, variadic, total)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "concat": _operation("str", "str", run=lambda *parts: "".join(parts), variadic=True),
        "strip": _operation("str", "str", "any", run=lambda text, chars: text.strip(chars)),
        "lstrip": _operation("str", "str", "any", run=lambda text, chars: text.lstrip(chars)),
        "rstrip": _operation("str", "str", "any", run=lambda text, chars: text.rstrip(chars)),
        "lower": _operation("str", "str", run=lambda text: text.lower()),
        "upper": _operation("str", "str", run=lambda text: text.upper()),
        "title": _operation("str", "str", run=lambda text: text.title()),
        "capitalize": _operation("str", "str", run=lambda text: text.capitalize()),
        "removeprefix": _operation("str", "str", "str", run=lambda text, part: text.removeprefix(part)),
        "removesuffix": _operation("str", "str", "str", run=lambda text, part: text.removesuffix(part)),
        "split": _operation("list<str>", "str", "any", "int", run=_split, total=False),
        "splitlines": _operation("list<str>", "str", run=lambda text: text.splitlines()),
        "item": _operation("any", "any", "any", run=_item, total=False),
        "slice": _operation(
            "any", "any", "any", "any", "any", run=lambda v, a, b, c: v[slice(a, b, c)], total=False
        ),
        "replace": _operation(
            "str", "str", "str", "str", "int", run=lambda text, a, b, n: text.replace(a, b, n)
        ),
        "repeat": _operation("str", "str", "int", run=lambda text, times: text * times),
        "len": _operation("int", "any", run=len),
        "int": _operation("int", "any", run=_number(int), total=False),
        "float": _operation("float", "any", run=_number(float), total=False),
        "json_get": _operation("any", "any", "any", run=_json_get, variadic=True, total=False),
        "bool": _operation("bool", "any", run=bool),
        "eq": _operation("bool", "any", "any", run=lambda a, b: a == b),
        "lt": _operation("bool", "any", "any", run=lambda a, b: a < b),
        "le": _operation("bool", "any", "any", run=lambda a, b: a <= b),
        "contains": _operation("bool", "any", "any", run=lambda whole, part: part in whole),
        "startswith": _operation("bool", "str", "str", run=lambda text, part: text.startswith(part)),
        "endswith": _operation("bool", "str", "str", run=lambda text, part: text.endswith(part)),
        "matches": _operation(
            "bool", "str", "str", run=lambda text, rx: re.search(rx, text) is not None, total=False
        ),
        "and": _operation("bool", "bool", "bool", run=lambda a, b: a and b),
        "or": _operation("bool", "bool", "bool", run=lambda a, b: a or b),
        "not": _operation("bool", "bool", run=lambda a: not a),
        "reasoning": _operation("list<str>", "str", "str", run=split_reasoning),
        "format": _operation("str", "any", "str", "str", run=_format, total=False),
    }
)


def compute(name: str, operands: tuple[Any, ...]) -> Any:
    """The result of operation `name`. Raises ComputeError."""
    try:
        return OPERATIONS[name].run(*operands)
    except (TypeError, ValueError, re.error) as error:
        if isinstance(error, ComputeError):
            raise
        raise ComputeError(f"{name}: {error}") from error


def pack(kind: str, keys: tuple[str, ...], items: tuple[Any, ...]) -> Any:
    """A list, tuple or dict of values that are known only now."""
    return _pack(kind, keys, *items)
