"""Mistral: `[TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]`, and `[TOOL_CALLS]f[ARGS]{...}` of its newer tokenizers."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from typing import Any

from runtime.server.tools.calls import json_call, json_calls, parse
from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat

_ARGS = "[ARGS]"
_ALPHABET = string.ascii_letters + string.digits


class Mistral(ToolFormat):
    name = "mistral"
    marks = ("[TOOL_CALLS]",)
    separators = ","

    def region(self) -> Region:
        return Bracketed(named=True, skip=_ARGS)

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        before, mark, after = text.partition(_ARGS)
        if not mark:
            if text.lstrip().startswith("["):
                return json_calls(text, tools)
            before, brace, after = text.partition("{")
            after = brace + after
        try:
            call = json_call({"name": before.strip(), "arguments": parse(after)}, tools)
        except ValueError:
            return None
        return None if call is None else [call]

    def new_id(self) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))  # its templates insist on nine
