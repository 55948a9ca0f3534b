"""What a model writes, piece by piece, to text and calls of tools.

A family writes a call as a region: an opening mark, then a bracketed value (or text up to a closing mark). Text before a region
streams at once, less what may be the beginning of a mark; a region is read when it is complete. What turns out to be
no call of a known tool is given back as text, less the noise that stands around calls. Each character is looked at a bounded
number of times, whatever the text is.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

MAX_PREFIX = 256  # characters between an opening mark and the value, where a family has some
_AT_ONCE = 256  # characters that a look at a text may copy: an answer can come whole, and each mark in it is one look


class ToolCall(msgspec.Struct, frozen=True):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class MoreArguments(msgspec.Struct, frozen=True):
    """Further text of the newest call's arguments."""

    text: str


Piece = str | ToolCall | MoreArguments


class Region(ABC):
    """Finds the end of what follows an opening mark."""

    @abstractmethod
    def feed(self, text: str) -> tuple[int, bool] | None:
        """How many characters of `text` still belong to it, and whether it is whole (or cannot be one); None: all, and more
        is to come."""


class Bracketed(Region):
    """A value in brackets, whose strings stand in `quotes`. Before it only blanks may come; or, if `named`, a name as well
    and the word `skip`."""

    def __init__(self, quotes: str = '"', *, named: bool = False, skip: str = "") -> None:
        self._outside = re.compile("[" + re.escape(quotes) + r"\[\]{}]")
        self._inside = {q: re.compile("[" + q + r"\\]") for q in quotes}
        self._named = named
        self._skip = skip
        self._before = ""
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def feed(self, text: str) -> tuple[int, bool] | None:
        if self._depth:
            return self._value(text, 0)
        base = len(self._before)
        self._before += text
        start = self._start()
        if start is None:
            return (len(text), False) if len(self._before) > MAX_PREFIX else None
        blank = not self._before[:start].strip()
        if start > MAX_PREFIX or not (blank or self._named):
            first = len(self._before) - len(self._before.lstrip())
            return max(first - base, 0), False
        return self._value(self._before[start:], start - base)

    def _start(self) -> int | None:
        """Where the value begins, None if that cannot be seen yet."""
        at = 0
        while (found := self._BRACKET.search(self._before, at)) is not None:
            at = found.start()
            if self._skip and self._skip.startswith(self._before[at : at + len(self._skip)]):
                at += len(self._skip)
                if at <= len(self._before):
                    continue
                return None
            return at
        if not self._named and self._before.strip():
            return len(self._before)
        return None

    _BRACKET = re.compile(r"[\[{]")

    def _value(self, text: str, offset: int) -> tuple[int, bool] | None:
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            pattern = self._inside[self._quote] if self._quote else self._outside
            found = pattern.search(text, at)
            if found is None:
                return None
            at = found.end()
            character = found.group()
            if character == "\\":
                self._escaped = True
            elif character in "[{":
                self._depth += 1
            elif character in "]}":
                self._depth -= 1
                if self._depth <= 0:
                    return at + offset, True
            else:
                self._quote = "" if self._quote else character
        return None


class UpTo(Region):
    """Text up to a closing mark, which belongs to it."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._tail = ""

    def feed(self, text: str) -> tuple[int, bool] | None:
        joined = self._tail + text
        at = joined.find(self._mark)
        if at >= 0:
            return at + len(self._mark) - len(self._tail), True
        self._tail = joined[-len(self._mark) + 1 :]
        return None


class ToolFormat(ABC):
    """How a family of models writes calls.

    marks       what opens a region anywhere
    first       brackets that open a region, of which they are part, at the beginning of the answer or after another call
    noise       what stands around calls and means nothing
    separators  characters that may stand between two calls
    """

    name: str
    marks: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    separators: str = ""

    @abstractmethod
    def region(self) -> Region:
        """What follows an opening mark."""

    @abstractmethod
    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        """The calls of a whole region, None if it is something else. `tools`: JSON schemas of arguments by name."""

    def new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def structure(self, name: str) -> tuple[str, str, str] | None:
        """Trigger, beginning and end of a call whose arguments are to be constrained; None where that cannot be."""
        return None

    def alone(self, name: str) -> tuple[str, str] | None:
        """Beginning and end of a call in an answer of nothing but calls, a line each; None where that cannot be constrained."""
        found = self.structure(name)
        return None if found is None else found[1:]


class ToolParser:
    """Reads one answer. `tools`: JSON schemas of arguments by name."""

    def __init__(self, form: ToolFormat, tools: Mapping[str, Any]) -> None:
        self._form = form
        self._tools = tools
        words = sorted((*form.marks, *form.first, *form.noise), key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, words)))
        self._beginnings = frozenset(w[:n] for w in words for n in range(1, len(w)))
        self._longest = max(map(len, words))
        self._between = form.separators + " \t\r\n"
        self._pending = ""  # may be the beginning of a word
        self._blanks: list[str] = []  # belong to the text unless a call follows
        self._fresh = True  # nothing but calls came so far, or since the last one
        self._called = False
        self._region: Region | None = None
        self._mark = ""
        self._held: list[str] = []

    def feed(self, text: str) -> list[Piece]:
        """What the next part of the answer says."""
        out: list[Piece] = []
        for at in range(0, len(text), _AT_ONCE):
            part = text[at : at + _AT_ONCE]
            while part:
                region = self._region
                part = self._outside(part, out) if region is None else self._inside(region, part, out)
        return out

    def close(self) -> list[Piece]:
        """What is left when nothing more comes."""
        out: list[Piece] = []
        if self._region is None:
            self._say(self._pending, out)
        else:
            self._say(self._mark + "".join(self._held), out)
        if blanks := "".join(self._blanks):
            out.append(blanks)
        self._region, self._pending, self._blanks = None, "", []
        return out

    def _outside(self, new: str, out: list[Piece]) -> str:
        """Take text that is in no region; what is left of it where one opens."""
        text, at = self._pending + new, 0
        self._pending = ""
        for found in self._words.finditer(text):
            word, between = found.group(), text[at : found.start()]
            if word in self._form.first:
                if not self._fresh or between.strip(self._between):
                    continue
            self._say(between, out)
            at = found.end()
            if word in self._form.noise:
                continue
            self._region, self._held = self._form.region(), []
            self._mark = word if word in self._form.marks else ""
            return text[at - len(word) + len(self._mark) :]
        rest = text[at:]
        lengths = range(min(self._longest - 1, len(rest)), 0, -1)
        tail = next((n for n in lengths if rest[-n:] in self._beginnings), 0)
        self._pending = rest[len(rest) - tail :]
        self._say(rest[: len(rest) - tail], out)
        return ""

    def _inside(self, region: Region, text: str, out: list[Piece]) -> str:
        """Take text of a region; what is left of it behind its end."""
        end = region.feed(text)
        if end is None:
            self._held.append(text)
            return ""
        taken, whole = end
        self._held.append(text[:taken])
        value = "".join(self._held)
        self._region = None
        calls = self._form.read(value, self._tools) if whole else None
        if calls is None:
            self._say(self._mark + value, out)
        else:
            out += calls
            self._blanks, self._called, self._fresh = [], True, True
        return text[taken:]

    def _say(self, text: str, out: list[Piece]) -> None:
        if self._called and self._fresh:
            text = text.lstrip(self._between)
        body = text.rstrip()
        if body:
            self._blanks.append(body)
            out.append("".join(self._blanks))
            self._blanks = []
            self._fresh = False
        if len(body) < len(text):
            self._blanks.append(text[len(body) :])
