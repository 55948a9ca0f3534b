"""Regular expressions as text, parsed to a tree.

The dialect "python" is the part of Python's `re` syntax that describes a regular language, read as with
`re.ASCII`: `\\d \\w \\s` and case folding are ASCII unless the pattern says `(?u)`. The dialect "ecma" is
JSON Schema's (ECMA 262). A lazy quantifier has the language of the greedy one. What is not regular, or
depends on what stands around a position, is refused with its place: lookaround, back-references,
conditionals, atomic groups, possessive quantifiers, word boundaries, anchors that are not at an end.

`parse` gives a `Pattern`: alternatives, each with the node it matches and whether it is anchored at the
start and at the end. Matching a whole text ignores the two flags; searching (JSON Schema's `pattern`) does not.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from grammar import codepoints as cp
from grammar.constraint_errors import RegexError

Dialect = Literal["python", "ecma"]

MAX_DEPTH = 100
MAX_LENGTH = 1 << 16
MAX_REPEAT = 1 << 20


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of `ranges`."""

    ranges: cp.Ranges
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` from `low` to `high` times; `high` None: without end."""

    item: Node
    low: int
    high: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start or the end of the text. Removed by `parse`."""

    at_end: bool
    start: int
    end: int


Node = Chars | Sequence | Either | Repeat | Anchor


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to match: `node`, tied to the start and to the end of the text or not."""

    node: Node
    at_start: bool
    at_end: bool


@dataclass(frozen=True, slots=True)
class Pattern:
    source: str
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    verbose: bool = False
    unicode: bool = False


_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}
_SPECIAL = frozenset(".^$*+?()[{|\\")


def parse(source: str, dialect: Dialect = "python") -> Pattern:
    """Parse `source`. Raises RegexError with the position of what is wrong or not regular."""
    if len(source) > MAX_LENGTH:
        raise RegexError(
            f"the pattern has {len(source)} characters, the limit is {MAX_LENGTH}", source[:72], 0
        )
    node = _Parser(source, dialect).parse()
    return Pattern(source, tuple(_split_anchors(node, source)))


def _split_anchors(node: Node, source: str) -> list[Alternative]:
    """Pull anchors out to the alternatives of the whole; refuse one that is not at an end."""
    if isinstance(node, Anchor):
        empty = Sequence((), node.start, node.end)
        return [Alternative(empty, not node.at_end, node.at_end)]
    if not _has_anchor(node):
        return [Alternative(node, False, False)]
    if isinstance(node, Either):
        return [a for option in node.options for a in _split_anchors(option, source)]
    if isinstance(node, Sequence):
        return _split_sequence(node, source)
    assert isinstance(node, Repeat)
    raise RegexError(
        "an anchor inside a repeat can never be repeated; move it out", source, _first_anchor(node)
    )


def _split_sequence(node: Sequence, source: str) -> list[Alternative]:
    partial = [Alternative(Sequence((), node.start, node.start), False, False)]
    for index, item in enumerate(node.items):
        options = _split_anchors(item, source)
        if len(partial) * len(options) > 256:
            raise RegexError("too many combinations of anchored alternatives", source, item.start)
        joined = []
        for left in partial:
            for right in options:
                before = left.node.items if isinstance(left.node, Sequence) else (left.node,)
                if right.at_start and any(map(_consumes, before)):
                    raise RegexError(
                        "'^' after something that takes text never matches", source, _first_anchor(item)
                    )
                if left.at_end and _consumes(right.node):
                    place = next(_first_anchor(i) for i in node.items[: index + 1] if _has_anchor(i))
                    raise RegexError("'$' before something that takes text never matches", source, place)
                if right.at_start and before and not left.at_start:
                    raise RegexError("'^' after something that may take text", source, _first_anchor(item))
                if left.at_end and not _is_empty(right.node):
                    raise RegexError("'$' before something that may take text", source, item.start)
                both = Sequence((*before, right.node), node.start, node.end)
                joined.append(Alternative(both, left.at_start or right.at_start, left.at_end or right.at_end))
        partial = joined
    return partial


def _is_empty(node: Node) -> bool:
    return isinstance(node, Sequence) and all(map(_is_empty, node.items))


def _consumes(node: Node) -> bool:
    """Does every match of `node` take at least one character?"""
    if isinstance(node, Chars):
        return True
    if isinstance(node, Sequence):
        return any(map(_consumes, node.items))
    if isinstance(node, Either):
        return all(map(_consumes, node.options))
    return isinstance(node, Repeat) and node.low > 0 and _consumes(node.item)


def children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Sequence):
        return node.items
    if isinstance(node, Either):
        return node.options
    return (node.item,) if isinstance(node, Repeat) else ()


def _has_anchor(node: Node) -> bool:
    return isinstance(node, Anchor) or any(map(_has_anchor, children(node)))


def _first_anchor(node: Node) -> int:
    if isinstance(node, Anchor):
        return node.start
    return next((_first_anchor(c) for c in children(node) if _has_anchor(c)), node.start)


class _Parser:
    """Recursive descent over the characters of one pattern."""

    def __init__(self, source: str, dialect: Dialect) -> None:
        self.source = source
        self.ecma = dialect == "ecma"
        self.at = 0
        self.depth = 0
        self.flags = _Flags()
        self.names: set[str] = set()

    def parse(self) -> Node:
        node = self._either()
        if self.at < len(self.source):
            raise self._error("')' without '('", self.at)
        return node

    def _error(self, problem: str, position: int) -> RegexError:
        return RegexError(problem, self.source, position)

    def _peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self.at += len(text)
            return True
        return False

    def _skip_verbose(self) -> None:
        while self.flags.verbose and self.at < len(self.source):
            char = self.source[self.at]
            if char in " \t\n\r\f\v":
                self.at += 1
            elif char == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end + 1
            else:
                return

    def _either(self) -> Node:
        start = self.at
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Either(tuple(options), start, self.at)

    def _sequence(self) -> Node:
        start = self.at
        items: list[Node] = []
        while True:
            self._skip_verbose()
            if self.at >= len(self.source) or self.source[self.at] in "|)":
                break
            item = self._atom()
            if item is not None:
                items.append(self._quantified(item))
        return items[0] if len(items) == 1 else Sequence(tuple(items), start, self.at)

    def _quantified(self, item: Node) -> Node:
        self._skip_verbose()
        position = self.at
        bounds = self._quantifier()
        if bounds is None:
            return item
        if isinstance(item, Anchor):
            raise self._error("nothing to repeat: an anchor takes no text", position)
        low, high = bounds
        if high is not None and low > high:
            raise self._error(f"the least number of repeats, {low}, is above the greatest, {high}", position)
        if max(low, high or 0) > MAX_REPEAT:
            raise self._error(f"a repeat of {max(low, high or 0)}, the limit is {MAX_REPEAT}", position)
        if self._peek("+") and not self.ecma:
            raise self._error("possessive quantifiers are not supported; they change what matches", self.at)
        self._take("?")  # lazy: which match comes first differs, the language does not
        self._skip_verbose()
        again = self.at
        if self._quantifier() is not None:
            raise self._error("multiple repeat; put the repeated part in a group (?:...)", again)
        return Repeat(item, low, high, item.start, self.at)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        if not self._peek("{"):
            return None
        close = self.source.find("}", self.at)
        low, comma, high = self.source[self.at + 1 : close].partition(",") if close > 0 else ("", "", "")
        digits = all(x == "" or (x.isascii() and x.isdigit()) for x in (low, high))
        if close < 0 or not digits or (not low and (not comma or not high or self.ecma)):
            if close > 0 and digits and comma and not low and not high and not self.ecma:
                self.at = close + 1
                return 0, None
            return None  # a literal brace, as in Python
        if max(len(low), len(high)) > 9:
            raise self._error(f"a repeat of {low or high}, the limit is {MAX_REPEAT}", self.at)
        self.at = close + 1
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least

    def _atom(self) -> Node | None:
        start = self.at
        char = self.source[start]
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self._set(), start, self.at)
        if char == ".":
            self.at += 1
            newline: cp.Ranges = ((10, 10),)
            if self.ecma:
                newline = ((10, 10), (13, 13), (0x2028, 0x2029))
            return Chars(cp.ALL if self.flags.dot_all else cp.invert(newline), start, self.at)
        if char in "^$":
            self.at += 1
            return Anchor(char == "$", start, self.at)
        if char in "*+?":
            raise self._error("nothing to repeat", start)
        if char == "{" and self._is_quantifier():
            raise self._error("nothing to repeat", start)
        if char == "\\":
            return self._escape()
        self.at += 1
        return self._literal(ord(char), start)

    def _is_quantifier(self) -> bool:
        saved = self.at
        found = self._quantifier() is not None
        self.at = saved
        return found

    def _literal(self, point: int, start: int) -> Chars:
        ranges: cp.Ranges = ((point, point),)
        if self.flags.ignore_case:
            ranges = cp.fold(ranges, self.flags.unicode)
        return Chars(ranges, start, self.at)

    def _group(self) -> Node | None:
        start = self.at
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"groups are nested deeper than {MAX_DEPTH}", start)
        self.at += 1
        outer = self.flags
        if self._take("?") and not self._group_head(start, outer):
            self.depth -= 1
            return None
        node = self._either()
        if not self._take(")"):
            raise self._error("this '(' is not closed", start)
        self.flags = outer
        self.depth -= 1
        return Sequence((node,), start, self.at) if isinstance(node, Anchor) else node

    def _group_head(self, start: int, outer: _Flags) -> bool:
        """Read what follows `(?`. False if the group is complete (a comment, flags for what follows)."""
        refused = {
            "=": "lookahead (?=...)", "!": "negative lookahead (?!...)",
            "<=": "lookbehind (?<=...)", "<!": "negative lookbehind (?<!...)",
            ">": "atomic groups (?>...)", "(": "conditionals (?(...)...)", "P=": "back-references (?P=...)",
        }  # fmt: skip
        for sign, name in refused.items():
            if self._peek(sign):
                raise self._error(f"{name} are not supported: the constraint must be a plain language", start)
        if self._take(":"):
            return True
        if self._take("#"):
            end = self.source.find(")", self.at)
            if end < 0:
                raise self._error("this comment is not closed", start)
            self.at = end + 1
            return False
        if self._take("P<") or (self.ecma and self._take("<")):
            end = self.source.find(">", self.at)
            name = self.source[self.at : end] if end > 0 else ""
            if not name.isidentifier():
                raise self._error(f"a group's name must be an identifier, not {name!r}", self.at)
            if name in self.names:
                raise self._error(f"the group name {name!r} is used twice", self.at)
            self.names.add(name)
            self.at = end + 1
            return True
        return self._inline_flags(start, outer)

    def _inline_flags(self, start: int, outer: _Flags) -> bool:
        values = {
            "ignore_case": outer.ignore_case, "dot_all": outer.dot_all,
            "verbose": outer.verbose, "unicode": outer.unicode,
        }  # fmt: skip
        known = {"i": "ignore_case", "s": "dot_all", "x": "verbose", "u": "unicode"}
        on = True
        while self.at < len(self.source):
            char = self.source[self.at]
            self.at += 1
            if char == "-" and on:
                on = False
            elif char in known:
                values[known[char]] = on
            elif char == "a" and on:
                values["unicode"] = False
            elif char == "m":
                pass  # anchors are at the ends of the whole text only, where both modes agree
            elif char == ":" or char == ")":
                self.flags = _Flags(**values)
                if char == ":":
                    return True
                if self.depth == 1 and on and self.source[:start].strip() == "":
                    return False
                raise self._error("flags for the whole pattern must stand at its start; use (?i:...)", start)
            else:
                raise self._error(f"unknown extension ?{char}", self.at - 1)
        raise self._error("this '(' is not closed", start)

    def _class_escape(self, letter: str) -> cp.Ranges | None:
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

    def _property(self, start: int) -> cp.Ranges:
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
            raise self._error(
                f"unknown Unicode property {name!r}; use a general category such as L or Lu", start
            )
        self.at = close + 1
        return cp.invert(ranges) if negated else ranges

    def _escape(self) -> Node:
        start = self.at
        self.at += 1
        if self.at >= len(self.source):
            raise self._error("the pattern ends in a backslash", start)
        char = self.source[self.at]
        if char in "bB":
            raise self._error(f"word boundaries (\\{char}) are not supported", start)
        if char in "AZ" and not self.ecma:
            self.at += 1
            return Anchor(char == "Z", start, self.at)
        ranges = self._class_escape(char)
        if ranges is not None:
            self.at += 1
            return Chars(ranges, start, self.at)
        if char in "pP" and self.ecma:
            return Chars(self._property(start), start, self.at)
        if char in "123456789" or (char == "k" and self.ecma):
            octal = self.source[self.at : self.at + 3]
            if not (len(octal) == 3 and all(c in "01234567" for c in octal) and char in "0123"):
                raise self._error("back-references are not supported: the language is not regular", start)
        return self._literal(self._char_escape(start), start)

    def _char_escape(self, start: int) -> int:
        """The code point of the escape at `start`, whose letter is at `self.at`."""
        char = self.source[self.at]
        self.at += 1
        if char in _ESCAPES and not (char == "a" and self.ecma):
            return _ESCAPES[char]
        if char == "x":
            return self._hex(2, start)
        if char == "u":
            if self.ecma and self._take("{"):
                return self._braced(start)
            point = self._hex(4, start)
            if 0xD800 <= point < 0xDC00 and self._peek("\\u"):
                self.at += 2
                return 0x10000 + ((point - 0xD800) << 10) + (self._hex(4, start) - 0xDC00)
            return point
        if char == "U" and not self.ecma:
            return self._hex(8, start)
        if char == "N" and not self.ecma and self._take("{"):
            return self._named(start)
        if char == "c" and self.ecma and self.at < len(self.source) and self.source[self.at].isascii():
            self.at += 1
            return ord(self.source[self.at - 1]) % 32
        if char in "01234567" and not (self.ecma and char != "0"):
            return self._octal(start)
        if char.isascii() and char.isalnum() and not self.ecma:
            raise self._error(f"unknown escape \\{char}", start)
        if char.isascii() and char.isalpha():
            raise self._error(f"unknown escape \\{char}", start)
        return ord(char)

    def _hex(self, digits: int, start: int) -> int:
        text = self.source[self.at : self.at + digits]
        if len(text) < digits or not all(c in "0123456789abcdefABCDEF" for c in text):
            raise self._error(f"this escape needs {digits} hexadecimal digits", start)
        self.at += digits
        point = int(text, 16)
        if point > cp.MAX:
            raise self._error(f"there is no code point {point:#x}", start)
        return point

    def _braced(self, start: int) -> int:
        close = self.source.find("}", self.at)
        text = self.source[self.at : close] if close > 0 else ""
        if not 1 <= len(text) <= 6 or not all(c in "0123456789abcdefABCDEF" for c in text):
            raise self._error("\\u{...} needs 1 to 6 hexadecimal digits", start)
        self.at = close + 1
        if int(text, 16) > cp.MAX:
            raise self._error(f"there is no code point {text}", start)
        return int(text, 16)

    def _named(self, start: int) -> int:
        close = self.source.find("}", self.at)
        name = self.source[self.at : close] if close > 0 else ""
        try:
            point = ord(unicodedata.lookup(name))
        except (KeyError, TypeError):
            raise self._error(f"there is no character named {name!r}", start) from None
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
            raise self._error(f"octal escape \\{text} is above \\377", start)
        return value

    def _set(self) -> cp.Ranges:
        start = self.at
        self.at += 1
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        first = True
        while True:
            if self.at >= len(self.source):
                raise self._error("this '[' is not closed", start)
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
        if not (self._peek("-") and self.source[self.at + 1 : self.at + 2] not in ("", "]")):
            return low if isinstance(low, tuple) else ((low, low),)
        self.at += 1
        high = self._set_char()
        if isinstance(low, tuple) or isinstance(high, tuple):
            if self.ecma:
                parts = [p if isinstance(p, tuple) else ((p, p),) for p in (low, high)]
                return cp.normalise([*parts[0], *parts[1], (0x2D, 0x2D)])
            raise self._error("a range needs a character at each end", position)
        if low > high:
            raise self._error("this range ends before it begins", position)
        return ((low, high),)

    def _set_char(self) -> int | cp.Ranges:
        char = self.source[self.at]
        position = self.at
        self.at += 1
        if char != "\\":
            return ord(char)
        if self.at >= len(self.source):
            raise self._error("the pattern ends in a backslash", position)
        letter = self.source[self.at]
        if letter == "b":
            self.at += 1
            return 8
        ranges = self._class_escape(letter)
        if ranges is not None:
            self.at += 1
            return ranges
        if letter in "pP" and self.ecma:
            return self._property(position)
        return self._char_escape(position)
