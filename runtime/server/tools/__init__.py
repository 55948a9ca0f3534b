"""Formats of tool calls by name, and which of them a chat template speaks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from runtime.errors import InvalidRequest
from runtime.server.tools.deepseek import DeepSeek
from runtime.server.tools.hermes import Hermes
from runtime.server.tools.llama3 import Llama3
from runtime.server.tools.mistral import Mistral
from runtime.server.tools.parser import ToolFormat
from runtime.server.tools.pythonic import Pythonic
from runtime.server.tools.qwen3_coder import Qwen3Coder

FORMATS: Mapping[str, type[ToolFormat]] = MappingProxyType(
    {f.name: f for f in (Hermes, Llama3, Mistral, DeepSeek, Pythonic, Qwen3Coder)}
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "qwen": "hermes",
        "qwen25": "hermes",
        "llama3": "llama3_json",
        "deepseekv3": "deepseek",
        "deepseek_v3": "deepseek",
    }
)


def tool_format(name: str) -> ToolFormat:
    """By name. Raises InvalidRequest with the near miss."""
    known = {**FORMATS, **{a: FORMATS[f] for a, f in ALIASES.items()}}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(FORMATS)}"
        raise InvalidRequest(f"no format of tool calls is called {name!r}{hint}", param="tool_call_parser")
    return known[name]()


def format_of_template(source: str) -> ToolFormat:
    """The format whose marks a chat template writes; Hermes' for one that writes none."""
    marks = {
        "<function=": "qwen3_coder",
        "<tool_call>": "hermes",
        "[TOOL_CALLS]": "mistral",
        "tool▁call▁begin": "deepseek",
        "<|python_start|>": "pythonic",
        "<|python_tag|>": "llama3_json",
        '"parameters": dictionary of argument': "llama3_json",
    }
    return tool_format(next((name for mark, name in marks.items() if mark in source), "hermes"))
