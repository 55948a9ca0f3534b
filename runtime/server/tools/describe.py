"""Tools for models whose chat template knows none: described in the system message, calls and results written as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = (
    "You can call functions. Each of these lines describes one:\n<tools>\n{tools}\n</tools>\n"
    'To call a function, write <tool_call>\n{{"name": "its name", "arguments": {{...}}}}\n</tool_call>. '
    "You may call several, one after another. Results come back within <tool_response> tags."
)


def described(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation with nothing but roles and text."""
    out = [_plain(m) for m in messages]
    if tools:
        lines = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
        text = _INTRODUCTION.format(tools=lines)
        if out and out[0]["role"] == "system":
            out[0]["content"] = f"{out[0]['content']}\n\n{text}".strip()
        else:
            out.insert(0, {"role": "system", "content": text})
    return out


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message["role"], message["content"]
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [
        "<tool_call>\n" + json.dumps(c["function"], ensure_ascii=False) + "\n</tool_call>"
        for c in message.get("tool_calls", ())
    ]
    return {"role": role, "content": "\n".join([content, *calls] if content else calls)}
