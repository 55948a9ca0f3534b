"""Answers with a Python type: the value that a gen's text stands for, and which type a variable has."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from sglc.errors import RunError
from sglc.lang.type_schema import is_pydantic, name_of

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


def parse(type: Any, text: Any) -> Any:
    """The value that a text stands for; of a list of texts (samples, branches) the list of values.

    Raises RunError if it is none of the type's: cut at max_tokens before its shortest end, or written without the constraint.
    """
    if isinstance(text, list):
        return [parse(type, item) for item in text]
    try:
        if is_pydantic(type):
            from pydantic import TypeAdapter

            return TypeAdapter(type).validate_json(text)
        try:
            return msgspec.json.decode(text, type=type)
        except msgspec.DecodeError:
            return _read_loosely(type, text)
    except Exception as error:
        shown = text if len(str(text)) <= 120 else str(text)[:117] + "..."
        raise RunError(f"{shown!r} is no {name_of(type)}: {error}") from error


def _read_loosely(type: Any, text: str) -> Any:
    """Of a text that says a number in another way than msgspec takes: beyond what a float holds, or 1.0 for 1."""

    def number(digits: str) -> float | int:
        value = float(digits)
        return int(value) if value.is_integer() else value

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return msgspec.convert(json.loads(text, parse_float=number, parse_constant=refuse), type=type)
