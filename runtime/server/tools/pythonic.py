"""Llama 3.2 and 4, and others: the answer is a list of Python calls, `[f(a=1, b="x"), g()]`.

The literals are read by the parser below, never by Python: what a model writes is not code here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.server.tools.parser import Bracketed, Region, ToolCall, ToolFormat

_MAX_DEPTH = 64
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[A-Za-z_][\w.\-]*)
    |(?P<mark>[\[\](){},:=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


class Pythonic(ToolFormat):
    name = "pythonic"
    marks = ("<|python_start|>", "<|python_tag|>")
    first = ("[",)
    noise = ("<|python_end|>", "<|eom_id|>")

    def region(self) -> Region:
        return Bracketed("\"'")

    def read(self, text: str, tools: Mapping[str, Any]) -> list[ToolCall] | None:
        try:
            calls = _Reader(text).calls()
            out = [ToolCall(name, msgspec.json.encode(arguments).decode()) for name, arguments in calls]
        except (ValueError, OverflowError, UnicodeError):
            return None
        return out if out and all(c.name in tools for c in out) else None


class _Reader:
    """Recursive descent over tokens. Raises ValueError for anything else than calls with literal arguments."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"unexpected text at {at}")
            kind = str(found.lastgroup)
            self._tokens.append((kind, found.group(kind)))
            at = found.end()
        self._at = 0

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        self._take("mark", "[")
        out = []
        while not self._skip("]"):
            name = self._take("name")
            self._take("mark", "(")
            arguments: dict[str, Any] = {}
            while not self._skip(")"):
                key = self._take("name")
                if key in arguments:
                    raise ValueError(f"{key} is given twice")
                self._take("mark", "=")
                arguments[key] = self._value(0)
                self._comma(")")
            out.append((name, arguments))
            self._comma("]")
        if self._at != len(self._tokens):
            raise ValueError("text after the calls")
        return out

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        kind, text = self._next()
        if kind == "string":
            value = _unescape(text[1:-1])
            while self._peek()[0] == "string":  # neighbours are one string
                value += _unescape(self._next()[1][1:-1])
            return value
        if kind == "number":
            if len(text) > 300:
                raise ValueError("a number is too long")
            return float(text) if any(c in text for c in ".eE") else int(text)
        if kind == "name" and text in _CONSTANTS:
            return _CONSTANTS[text]
        if text in "[(" and kind == "mark":
            end = "]" if text == "[" else ")"
            items = []
            while not self._skip(end):
                items.append(self._value(depth + 1))
                self._comma(end)
            return items
        if text == "{" and kind == "mark":
            table: dict[str, Any] = {}
            while not self._skip("}"):
                key = self._value(depth + 1)
                if not isinstance(key, str):
                    raise ValueError("a key is not a string")
                self._take("mark", ":")
                table[key] = self._value(depth + 1)
                self._comma("}")
            return table
        raise ValueError(f"unexpected {text!r}")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _take(self, kind: str, text: str | None = None) -> str:
        found = self._next()
        if found[0] != kind or (text is not None and found[1] != text):
            raise ValueError(f"unexpected {found[1]!r}")
        return found[1]

    def _skip(self, mark: str) -> bool:
        if self._peek() == ("mark", mark):
            self._at += 1
            return True
        return False

    def _comma(self, end: str) -> None:
        if not self._skip(",") and self._peek() != ("mark", end):
            raise ValueError(f"no comma before {self._peek()[1]!r}")


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found.group(1)
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        return _ESCAPED.get(code, code if code in "\\\"'" else "\\" + code)

    return _ESCAPE.sub(one, text) if "\\" in text else text
