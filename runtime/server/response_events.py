"""Parts of an answer as items of /v1/responses, whole or event by event."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from runtime.api import Delta
from runtime.server.parts import ArgumentsPart, CallPart, Part, ReasoningPart, TextPart, Whole
from runtime.server.sse import EventStream
from runtime.server.text_logprobs import without_bytes


def _message(text: str, id: str, status: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _reasoning(text: str, id: str, status: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": id, "type": "reasoning", "summary": [], "content": content, "status": status}


def _call(call: CallPart, arguments: str, id: str, status: str) -> dict[str, Any]:
    return {
        "id": id,
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _status(delta: Delta) -> str:
    return "completed" if delta.finish is not None and delta.finish.type == "stop" else "incomplete"


def output_of(whole: Whole, last: Delta, logprobs: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The items of a finished answer; `logprobs`: of the tokens of its text."""
    status = _status(last)
    out = [_reasoning(whole.reasoning, _id("rs"), status)] if whole.reasoning else []
    if whole.text or not (whole.calls or whole.reasoning):
        out.append(_message(whole.text, _id("msg"), status, logprobs))
    return out + [_call(c, c.arguments, _id("fc"), status) for c in whole.calls]


class Items:
    """Parts as events: one item after another begins, grows and ends. `output` are those that have ended."""

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._number = 0
        self._kind: type[Part] | None = None
        self._id = ""
        self._call: CallPart | None = None
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self.output: list[dict[str, Any]] = []

    async def send(self, name: str, fields: dict[str, Any]) -> None:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        await self._events.send(event, name)

    async def add(self, part: Part, logprobs: Sequence[dict[str, Any]] = ()) -> None:
        """`logprobs`: of the tokens of a text."""
        if isinstance(part, ArgumentsPart):
            await self._grow(part.text)
            return
        if self._kind is not type(part) or isinstance(part, CallPart):
            await self._close("completed")
            await self._open(part)
        await self._grow(part.arguments if isinstance(part, CallPart) else part.text, logprobs)

    async def end(self, last: Delta) -> None:
        """The answer is over."""
        if self._kind is None and not self.output:
            await self._open(TextPart(""))
        await self._close(_status(last))

    def _item(self, status: str) -> dict[str, Any]:
        text = "".join(self._texts)
        if self._call is not None:
            return _call(self._call, text, self._id, status)
        if self._kind is TextPart:
            return _message(text, self._id, status, self._logprobs)
        return _reasoning(text, self._id, status)

    @property
    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._id, "output_index": len(self.output)}
        return place if self._call is not None else {**place, "content_index": 0}

    async def _open(self, part: Part) -> None:
        self._kind, self._texts, self._logprobs = type(part), [], []
        self._call = part if isinstance(part, CallPart) else None
        self._id = _id({TextPart: "msg", ReasoningPart: "rs", CallPart: "fc"}[type(part)])
        item = self._item("in_progress")
        if self._call is None:
            item["content"] = []
        await self.send("response.output_item.added", {"output_index": len(self.output), "item": item})
        if self._call is None:
            part_ = self._item("in_progress")["content"][0]
            await self.send("response.content_part.added", {**self._place, "part": part_})

    async def _grow(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> None:
        self._texts.append(text)
        self._logprobs += logprobs
        fields = {**self._place, "delta": text}
        if self._kind is TextPart:
            fields["logprobs"] = without_bytes(logprobs)
        await self.send(f"response.{self._noun}.delta", fields)

    @property
    def _noun(self) -> str:
        if self._call is not None:
            return "function_call_arguments"
        return "output_text" if self._kind is TextPart else "reasoning_text"

    async def _close(self, status: str) -> None:
        if self._kind is None:
            return
        item, text = self._item(status), "".join(self._texts)
        if self._call is not None:
            fields = {**self._place, "arguments": text, "name": self._call.name}
            await self.send("response.function_call_arguments.done", fields)
        else:
            fields = {**self._place, "text": text}
            if self._kind is TextPart:
                fields["logprobs"] = without_bytes(self._logprobs)
            await self.send(f"response.{self._noun}.done", fields)
            await self.send("response.content_part.done", {**self._place, "part": item["content"][0]})
        await self.send("response.output_item.done", {"output_index": len(self.output), "item": item})
        self.output.append(item)
        self._kind, self._call = None, None
