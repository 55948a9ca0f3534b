"""Parts of an answer as blocks of /v1/messages, whole or event by event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from runtime.api import Delta, Usage
from runtime.server.parts import ArgumentsPart, CallPart, Part, ReasoningPart, TextPart, Whole
from runtime.server.sse import EventStream


def ending(delta: Delta, called: bool, stops: Sequence[str]) -> dict[str, Any]:
    """Why the message ends; `stops` are the caller's stop sequences."""
    assert delta.finish is not None
    matched = delta.finish.matched if delta.finish.type == "stop" else None
    if called and delta.finish.type == "stop":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(matched, str) and matched in stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    reason = {"length": "max_tokens"}.get(delta.finish.type, "end_turn")
    return {"stop_reason": reason, "stop_sequence": None}


def usage_of(usage: Usage | None, prompt: int) -> dict[str, int]:
    """What was read and written; tokens from the cache are counted apart."""
    u = usage or Usage(prompt_tokens=prompt)
    return {
        "input_tokens": prompt - u.cached_tokens,
        "output_tokens": u.completion_tokens,
        "cache_read_input_tokens": u.cached_tokens,
        "cache_creation_input_tokens": 0,
    }


def blocks_of(whole: Whole) -> list[dict[str, Any]]:
    """The content of a whole message."""
    blocks: list[dict[str, Any]] = []
    if whole.reasoning:
        blocks.append({"type": "thinking", "thinking": whole.reasoning, "signature": ""})
    if whole.text:
        blocks.append({"type": "text", "text": whole.text})
    for call in whole.calls:
        try:
            given = json.loads(call.arguments)
        except ValueError:  # cut off by max_tokens
            given = {}
        blocks.append({"type": "tool_use", "id": _use_id(call.id), "name": call.name, "input": given})
    return blocks


def _use_id(id: str) -> str:
    """A call's id, as clients of this API know them; that of a model with ids of its own stays."""
    return "toolu_" + id.removeprefix("call_") if id.startswith("call_") else id


class BlockEvents:
    """Parts as events: blocks that begin, grow and end, one after another."""

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._index = -1
        self._open = ""

    async def add(self, part: Part) -> None:
        if isinstance(part, CallPart):
            block = {"type": "tool_use", "id": _use_id(part.id), "name": part.name, "input": {}}
            await self._begin("tool_use", block, new=True)
            await self._grow({"type": "input_json_delta", "partial_json": part.arguments})
        elif isinstance(part, ArgumentsPart):
            await self._grow({"type": "input_json_delta", "partial_json": part.text})
        elif isinstance(part, ReasoningPart):
            await self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            await self._grow({"type": "thinking_delta", "thinking": part.text})
        elif isinstance(part, TextPart):
            await self._begin("text", {"type": "text", "text": ""})
            await self._grow({"type": "text_delta", "text": part.text})

    async def end(self) -> None:
        if self._open:
            await self._send("content_block_stop", {"index": self._index})
        self._open = ""

    async def _begin(self, kind: str, block: dict[str, Any], *, new: bool = False) -> None:
        if self._open == kind and not new:
            return
        await self.end()
        self._open = kind
        self._index += 1
        await self._send("content_block_start", {"index": self._index, "content_block": block})

    async def _grow(self, delta: dict[str, Any]) -> None:
        await self._send("content_block_delta", {"index": self._index, "delta": delta})

    async def _send(self, name: str, fields: dict[str, Any]) -> None:
        await self._events.send({"type": name, **fields}, name)
