"""Llama 3.1 and later: the answer is `{"name": "f", "parameters": {...}}`, several separated by semicolons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.server.tools.calls import json_calls
from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat


class Llama3(ToolFormat):
    name = "llama3_json"
    marks = ("<|python_tag|>",)
    first = ("{",)
    noise = ("<|eom_id|>",)
    separators = ";,"

    def region(self) -> Region:
        return Bracketed()

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        return json_calls(text, tools)

    def alone(self, name: str) -> tuple[str, str]:
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": ', "}"
