"""DeepSeek V3, R1 and V3.1: calls between marks of their own, the arguments in a code block or (V3.1) as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.server.tools.calls import json_call, parse
from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat

_SEPARATOR = "<｜tool▁sep｜>"
_END = "<｜tool▁call▁end｜>"


class DeepSeek(ToolFormat):
    name = "deepseek"
    marks = ("<｜tool▁call▁begin｜>",)
    noise = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "\n```" + _END, "```" + _END, _END)

    def region(self) -> Region:
        return Bracketed(named=True)

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        head, _, rest = text.partition(_SEPARATOR)
        before, brace, value = rest.partition("{")
        # V3 writes the type, the mark, the name and the code block; V3.1 the name and the mark.
        name = before.partition("```")[0].strip() or head.strip()
        try:
            call = json_call({"name": name, "arguments": parse(brace + value)}, tools)
        except ValueError:
            return None
        return None if call is None else [call]
