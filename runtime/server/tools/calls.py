"""A call written as a JSON object with the names of the function and of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.server.tools.parser import ToolCall


def parse(text: str) -> Any:
    """The JSON value; ValueError if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error)) from None


def json_call(value: Any, tools: Mapping[str, Any]) -> ToolCall | None:
    """`{"name": f, "arguments": {...}}` (or `parameters`) of a known tool f."""
    if not isinstance(value, dict) or not {"name"} < set(value) <= {
        "name",
        "arguments",
        "parameters",
        "id",
        "type",
    }:
        return None
    name = value["name"]
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # some write the object as a string
        try:
            arguments = parse(arguments)
        except ValueError:
            return None
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    return ToolCall(name, msgspec.json.encode(arguments).decode())


def json_calls(text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
    """One call, or an array of them."""
    try:
        value = parse(text)
    except ValueError:
        return None
    values = value if isinstance(value, list) else [value]
    calls = [json_call(v, tools) for v in values]
    found = [c for c in calls if c is not None]
    return found if found and len(found) == len(calls) else None
