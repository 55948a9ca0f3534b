"""Answers with a Python type: the JSON schema that a gen is held to, and the value that its text stands for.

Pydantic's models and dataclasses say their own schema; all other types are read by msgspec: int, float, str, bool, None,
Literal, Enum, Optional and unions, list, tuple, set, dict, dataclasses, TypedDict, NamedTuple and msgspec's Struct. Objects with named
properties have no others: what a type does not name, its value would not keep.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import msgspec

from sglc.errors import RunError

_SEVERAL: Any = object()  # one name, several types


class Types:
    """The types of a program's variables, by name, as far as its gens were seen."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def note(self, name: Any, type: Any) -> None:
        if self._known.setdefault(name, type) != type:
            self._known[name] = _SEVERAL

    def of(self, name: Any) -> Any:
        """Raises KeyError, which says what to do, if no gen or several with different types write it."""
        found = self._known.get(name, None)
        if found is None:
            raise KeyError(
                f"{name!r} was not written by a gen(type=...); give the type: parsed({name!r}, SomeType)"
            )
        if found is _SEVERAL:
            raise KeyError(
                f"{name!r} is written by gens of several types; give one: parsed({name!r}, SomeType)"
            )
        return found


def schema_of(type: Any) -> str:
    """The JSON schema of a type, as JSON text. Raises TypeError for a type whose values JSON cannot say."""
    try:
        return _schema(type)
    except TypeError as error:
        if "unhashable" in str(error):
            return _schema.__wrapped__(type)
        raise


@lru_cache(maxsize=512)
def _schema(type: Any) -> str:
    try:
        if _is_pydantic(type):
            from pydantic import TypeAdapter

            found = TypeAdapter(type).json_schema()
        else:
            found = msgspec.json.schema(type)
    except Exception as error:
        raise TypeError(f"gen(type={_name(type)}): {error}") from None
    return json.dumps(_closed(found), ensure_ascii=False)


def parse(type: Any, text: Any) -> Any:
    """The value that a text stands for; of a list of texts (samples, branches) the list of values.

    Raises RunError if it is none of the type's: cut at max_tokens before its shortest end, or written without the constraint.
    """
    if isinstance(text, list):
        return [parse(type, item) for item in text]
    try:
        if _is_pydantic(type):
            from pydantic import TypeAdapter

            return TypeAdapter(type).validate_json(text)
        return msgspec.json.decode(text, type=type)
    except Exception as error:
        shown = text if len(str(text)) <= 120 else str(text)[:117] + "..."
        raise RunError(f"{shown!r} is no {_name(type)}: {error}") from error


def _is_pydantic(type: Any) -> bool:
    """Whether pydantic made the type, or one inside of it."""
    if hasattr(type, "__pydantic_core_schema__") or hasattr(type, "__pydantic_validator__"):
        return True
    inner = [*getattr(type, "__args__", ()), getattr(type, "__value__", None)]
    return any(t is not None and _is_pydantic(t) for t in inner)


def _closed(schema: Any) -> Any:
    """Without titles, and with objects that have the named properties alone."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
            found[key] = {name: _closed(part) for name, part in value.items()}
        elif key in ("const", "enum", "default", "examples", "discriminator"):
            found[key] = value
        elif key != "title":
            found[key] = _closed(value)
    found.pop("discriminator", None)  # a hint for readers; the alternatives say the same
    found.pop("default", None)
    if "properties" in found and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


def _name(type: Any) -> str:
    return getattr(type, "__name__", None) or repr(type)
