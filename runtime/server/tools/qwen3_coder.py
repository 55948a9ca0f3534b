"""Qwen3-Coder: `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`; values are plain text whose
type the tool's schema tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.server.tools.calls import parse
from runtime.server.tools.parser import Region, ToolCall, ToolFormat, UpTo

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class Qwen3Coder(ToolFormat):
    name = "qwen3_coder"
    marks = ("<tool_call>",)

    def region(self) -> Region:
        return UpTo("</tool_call>")

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        before, mark, rest = text.partition(_FUNCTION)
        name, bracket, rest = rest.partition(">")
        body, end, _ = rest.partition(_FUNCTION_END)
        if before.strip() or not (mark and bracket and end) or name not in tools:
            return None
        schema = tools[name]
        properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
        arguments: dict[str, Any] = {}
        for part in body.split(_PARAMETER)[1:]:
            key, bracket, value = part.partition(">")
            value, end, _ = value.partition(_PARAMETER_END)
            if not (bracket and end):
                return None
            arguments[key] = _typed(value.removeprefix("\n").removesuffix("\n"), properties.get(key))
        return [ToolCall(name, msgspec.json.encode(arguments).decode())]


def _typed(text: str, schema: Any) -> Any:
    """The JSON value, unless the schema wants a string."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return parse(text)
    except ValueError:
        return text
