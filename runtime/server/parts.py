"""An answer of a conversation, piece by piece, as what it consists of: reasoning, text, tool calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from runtime.reasoning import ReasoningTags
from runtime.server.tools.parser import MoreArguments, Piece, ToolCall


class TextPart(msgspec.Struct, frozen=True):
    text: str


class ReasoningPart(msgspec.Struct, frozen=True):
    text: str


class CallPart(msgspec.Struct, frozen=True):
    """The `index`-th call begins; `arguments` is the JSON text that is known so far."""

    index: int
    id: str
    name: str
    arguments: str


class ArgumentsPart(msgspec.Struct, frozen=True):
    """More of the newest call's arguments."""

    index: int
    text: str


Part = TextPart | ReasoningPart | CallPart | ArgumentsPart


class ReasoningStream:
    """Cuts the reasoning off the beginning of an answer, both without the blanks between them."""

    def __init__(self, tags: ReasoningTags) -> None:
        self._begin, self._end = tags.begin, tags.end
        self._opened = tags.opened
        self._state = "before"
        self._pending = ""
        self._leading: list[str] = []  # blanks before all else; part of the text if no reasoning follows
        self._blanks: list[str] = []
        self._said = False

    def feed(self, text: str) -> tuple[str, str]:
        """New reasoning and new text."""
        if self._state == "after":
            return "", text
        self._pending += text
        reasoning = ""
        if self._state == "before":
            head = self._pending.lstrip()
            self._leading.append(self._pending[: len(self._pending) - len(head)])
            self._pending = head
            if self._begin.startswith(head) and head != self._begin:
                return "", ""
            if head.startswith(self._begin):
                self._state, self._pending = "inside", head[len(self._begin) :]
            elif self._opened:
                self._state = "inside"
            else:
                return "", self._answer("".join(self._leading) + head)
        if self._state == "inside":
            at = self._pending.find(self._end)
            if at < 0:
                lengths = range(len(self._end) - 1, 0, -1)
                keep = next((n for n in lengths if self._pending.endswith(self._end[:n])), 0)
                cut = len(self._pending) - keep
                new, self._pending = self._pending[:cut], self._pending[cut:]
                return self._trimmed(new), ""
            reasoning = self._trimmed(self._pending[:at])
            self._state, self._pending = "leading", self._pending[at + len(self._end) :]
        rest = self._pending.lstrip()
        self._pending = ""
        return reasoning, self._answer(rest) if rest else ""

    def _answer(self, text: str) -> str:
        self._state, self._pending = "after", ""
        return text

    def close(self) -> tuple[str, str]:
        """What is left when nothing more comes."""
        rest, self._pending = self._pending, ""
        if self._state == "inside" or (self._state == "before" and self._opened):
            return self._trimmed(rest), ""
        return "", "".join(self._leading) + rest if self._state == "before" else rest

    def _trimmed(self, text: str) -> str:
        """Hold back blanks at the end, drop those at the beginning."""
        if not self._said:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._blanks += [text] if self._said and text else []
            return ""
        out = "".join([*self._blanks, body])
        self._blanks = [text[len(body) :]] if len(body) < len(text) else []
        self._said = True
        return out


class Parser(Protocol):
    """Finds tool calls in text."""

    def feed(self, text: str) -> list[Piece]: ...

    def close(self) -> list[Piece]: ...


class PlainParser:
    """No tools: all is text."""

    def feed(self, text: str) -> list[Piece]:
        return [text] if text else []

    def close(self) -> list[Piece]:
        return []


class NamedParser:
    """The answer is the arguments of one tool, which the request named."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        if self._begun:
            return [MoreArguments(text)] if text else []
        self._begun = True
        return [ToolCall(self._name, text)]

    def close(self) -> list[Piece]:
        return []


class Splitter:
    """One sample. `parser` reads tool calls, `new_id` names them. Unless there may be `several`, those after the first are
    left out."""

    def __init__(
        self,
        parser: Parser,
        tags: ReasoningTags | None,
        new_id: Callable[[], str],
        *,
        several: bool = True,
    ) -> None:
        self._parser = parser
        self._reasoning = ReasoningStream(tags) if tags is not None else None
        self._new_id = new_id
        self._several = several
        self._leaves_out = False  # what comes now belongs to a call that is left out
        self.calls = 0

    def feed(self, text: str) -> list[Part]:
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.feed(text)
        out: list[Part] = [ReasoningPart(reasoning)] if reasoning else []
        return out + self._parts(self._parser.feed(text) if text else [])

    def close(self) -> list[Part]:
        """The rest, once the answer has ended."""
        out: list[Part] = []
        if self._reasoning is not None:
            reasoning, text = self._reasoning.close()
            out += [ReasoningPart(reasoning)] if reasoning else []
            out += self._parts(self._parser.feed(text) if text else [])
        return out + self._parts(self._parser.close())

    def _parts(self, pieces: list[Piece]) -> list[Part]:
        out: list[Part] = []
        for piece in pieces:
            if isinstance(piece, str):
                out.append(TextPart(piece))
            elif isinstance(piece, ToolCall) and self.calls and not self._several:
                self._leaves_out = True
            elif isinstance(piece, ToolCall):
                out.append(CallPart(self.calls, self._new_id(), piece.name, piece.arguments))
                self.calls += 1
            elif not self._leaves_out:
                out.append(ArgumentsPart(self.calls - 1, piece.text))
        return out


class Whole:
    """The parts of one sample, added up."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: list[CallPart] = []

    def add(self, parts: list[Part]) -> None:
        for part in parts:
            if isinstance(part, TextPart):
                self.text += part.text
            elif isinstance(part, ReasoningPart):
                self.reasoning += part.text
            elif isinstance(part, CallPart):
                self.calls.append(part)
            else:
                last = self.calls[-1]
                self.calls[-1] = msgspec.structs.replace(last, arguments=last.arguments + part.text)
