"""Characters and sets of characters as a pattern spells them: escapes, `\\d`, `\\p{L}`, `[a-z]`.

`grammar.regex_syntax` reads what stands around them.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from grammar import codepoints as cp
from grammar.constraint_errors import RegexError

_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}


@dataclass(frozen=True, slots=True)
class Flags:
    ignore_case: bool = False
    dot_all: bool = False
    verbose: bool = False
    unicode: bool = False


class PatternReader:
    """A place in a pattern, and the characters that can be read there.

    ecma   the dialect of JSON Schema, not Python's
    """

    def __init__(self, source: str, ecma: bool) -> None:
        self.source = source
        self.ecma = ecma
        self.at = 0
        self.flags = Flags(unicode=ecma)  # ECMA folds the case of all letters

    def error(self, problem: str, position: int) -> RegexError:
        return RegexError(problem, self.source, position)

    def peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def class_escape(self, letter: str) -> cp.Ranges | None:
        """The set of `\\d \\w \\s` and their negations; None for other letters."""
        low = letter.lower()
        if low not in "dsw":
            return None
        if self.ecma:
            ranges = {"d": cp.DIGIT, "w": cp.WORD, "s": cp.ECMA_SPACE}[low]
        elif self.flags.unicode:
            ranges = cp.unicode_class(low)
        else:
            ranges = {"d": cp.DIGIT, "w": cp.WORD, "s": cp.SPACE}[low]
        return ranges if letter == low else cp.invert(ranges)

    def property_escape(self, start: int) -> cp.Ranges:
        """`\\p{L}`, `\\P{Lu}`, `\\p{Letter}` by general category (ECMA)."""
        negated = self.source[self.at] == "P"
        close = self.source.find("}", self.at)
        name = self.source[self.at + 2 : close] if self.source[self.at + 1 : self.at + 2] == "{" else ""
        name = name.rpartition("=")[2]
        long = {
            "Letter": "L",
            "Uppercase_Letter": "Lu",
            "Lowercase_Letter": "Ll",
            "Number": "N",
            "Punctuation": "P",
        }
        name = long.get(name, name)
        ranges = cp.category(name) if 1 <= len(name) <= 2 else None
        if ranges is None:
            raise self.error(
                f"unknown Unicode property {name!r}; use a general category such as L or Lu", start
            )
        self.at = close + 1
        return cp.invert(ranges) if negated else ranges

    def char_escape(self, start: int) -> int:
        """The code point of the escape at `start`, whose letter is at `self.at`."""
        char = self.source[self.at]
        self.at += 1
        if char in _ESCAPES and not (char == "a" and self.ecma):
            return _ESCAPES[char]
        if char == "x":
            return self._hex(2, start)
        if char == "u":
            if self.ecma and self.take("{"):
                return self._braced(start)
            point = self._hex(4, start)
            if self.ecma and 0xD800 <= point < 0xDC00 and self.peek("\\u"):
                first, self.at = self.at, self.at + 2
                low = self._hex(4, start)
                if 0xDC00 <= low < 0xE000:
                    return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
                self.at = first
            return point
        if char == "U" and not self.ecma:
            return self._hex(8, start)
        if char == "N" and not self.ecma and self.take("{"):
            return self._named(start)
        if char == "c" and self.ecma:
            letter = self.source[self.at : self.at + 1]
            if not (letter.isascii() and letter.isalpha()):
                raise self.error("\\c needs a letter", start)
            self.at += 1
            return ord(letter) % 32
        if char in "01234567" and not (self.ecma and char != "0"):
            return self._octal(start)
        if char.isascii() and char.isalnum() and not self.ecma:
            raise self.error(f"unknown escape \\{char}", start)
        if char.isascii() and char.isalpha():
            raise self.error(f"unknown escape \\{char}", start)
        return ord(char)

    def _hex(self, digits: int, start: int) -> int:
        text = self.source[self.at : self.at + digits]
        if len(text) < digits or not all(c in "0123456789abcdefABCDEF" for c in text):
            raise self.error(f"this escape needs {digits} hexadecimal digits", start)
        self.at += digits
        point = int(text, 16)
        if point > cp.MAX:
            raise self.error(f"there is no code point {point:#x}", start)
        return point

    def _braced(self, start: int) -> int:
        close = self.source.find("}", self.at)
        text = self.source[self.at : close] if close > 0 else ""
        if not 1 <= len(text) <= 6 or not all(c in "0123456789abcdefABCDEF" for c in text):
            raise self.error("\\u{...} needs 1 to 6 hexadecimal digits", start)
        self.at = close + 1
        if int(text, 16) > cp.MAX:
            raise self.error(f"there is no code point {text}", start)
        return int(text, 16)

    def _named(self, start: int) -> int:
        close = self.source.find("}", self.at)
        name = self.source[self.at : close] if close > 0 else ""
        try:
            point = ord(unicodedata.lookup(name))
        except (KeyError, TypeError):
            raise self.error(f"there is no character named {name!r}", start) from None
        self.at = close + 1
        return point

    def _octal(self, start: int) -> int:
        end = self.at
        while end < len(self.source) and end - self.at < 2 and self.source[end] in "01234567":
            end += 1
        text = self.source[self.at - 1 : end]
        self.at = end
        value = int(text, 8)
        if value > 0o377:
            raise self.error(f"octal escape \\{text} is above \\377", start)
        return value

    def char_set(self) -> cp.Ranges:
        start = self.at
        self.at += 1
        negated = self.take("^")
        found: list[tuple[int, int]] = []
        first = True
        while True:
            if self.at >= len(self.source):
                raise self.error("this '[' is not closed", start)
            if self.source[self.at] == "]" and (not first or self.ecma):
                self.at += 1
                break
            first = False
            found.extend(self._set_item(start))
        ranges = cp.normalise(found)
        if self.flags.ignore_case:
            ranges = cp.fold(ranges, self.flags.unicode)
        return cp.invert(ranges) if negated else ranges

    def _set_item(self, start: int) -> cp.Ranges:
        position = self.at
        low = self._set_char()
        if not (self.peek("-") and self.source[self.at + 1 : self.at + 2] not in ("", "]")):
            return low if isinstance(low, tuple) else ((low, low),)
        self.at += 1
        high = self._set_char()
        if isinstance(low, tuple) or isinstance(high, tuple):
            if self.ecma:
                parts = [p if isinstance(p, tuple) else ((p, p),) for p in (low, high)]
                return cp.normalise([*parts[0], *parts[1], (0x2D, 0x2D)])
            raise self.error("a range needs a character at each end", position)
        if low > high:
            raise self.error("this range ends before it begins", position)
        return ((low, high),)

    def _set_char(self) -> int | cp.Ranges:
        char = self.source[self.at]
        position = self.at
        self.at += 1
        if char != "\\":
            return ord(char)
        if self.at >= len(self.source):
            raise self.error("the pattern ends in a backslash", position)
        letter = self.source[self.at]
        if letter == "b":
            self.at += 1
            return 8
        ranges = self.class_escape(letter)
        if ranges is not None:
            self.at += 1
            return ranges
        if letter in "pP" and self.ecma:
            return self.property_escape(position)
        return self.char_escape(position)
