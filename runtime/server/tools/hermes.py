"""Hermes, Qwen 2.5 and 3: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, one after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.server.tools.calls import json_calls
from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat


class Hermes(ToolFormat):
    name = "hermes"
    marks = ("<tool_call>",)
    noise = ("</tool_call>",)

    def region(self) -> Region:
        return Bracketed()

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        return json_calls(text, tools)

    def structure(self, name: str) -> tuple[str, str, str] | None:
        begin = f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        return "<tool_call>", begin, "}\n</tool_call>"
