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

from typing import Literal

from grammar import codepoints as cp
from grammar.constraint_errors import RegexError
from grammar.regex_anchors import split_anchors
from grammar.regex_characters import Flags, PatternReader
from grammar.regex_tree import Anchor, Chars, Either, Node, Pattern, Repeat, Sequence

Dialect = Literal["python", "ecma"]

MAX_DEPTH = 100
MAX_LENGTH = 1 << 16
MAX_REPEAT = 1 << 20


def parse(source: str, dialect: Dialect = "python") -> Pattern:
    """Parse `source`. Raises RegexError with the position of what is wrong or not regular."""
    if len(source) > MAX_LENGTH:
        raise RegexError(
            f"the pattern has {len(source)} characters, the limit is {MAX_LENGTH}", source[:72], 0
        )
    node = _Parser(source, dialect).parse()
    return Pattern(source, tuple(split_anchors(node, source)))


class _Parser(PatternReader):
    """Recursive descent over the characters of one pattern."""

    def __init__(self, source: str, dialect: Dialect) -> None:
        super().__init__(source, ecma=dialect == "ecma")
        self.depth = 0
        self.head = 0  # up to here there are only flags and comments
        self.names: set[str] = set()

    def parse(self) -> Node:
        node = self._either()
        if self.at < len(self.source):
            raise self.error("')' without '('", self.at)
        return node

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
        while self.take("|"):
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
            raise self.error("nothing to repeat: an anchor takes no text", position)
        low, high = bounds
        if high is not None and low > high:
            raise self.error(f"the least number of repeats, {low}, is above the greatest, {high}", position)
        if max(low, high or 0) > MAX_REPEAT:
            raise self.error(f"a repeat of {max(low, high or 0)}, the limit is {MAX_REPEAT}", position)
        if self.peek("+") and not self.ecma:
            raise self.error("possessive quantifiers are not supported; they change what matches", self.at)
        self.take("?")  # lazy: which match comes first differs, the language does not
        self._skip_verbose()
        again = self.at
        if self._quantifier() is not None:
            raise self.error("multiple repeat; put the repeated part in a group (?:...)", again)
        return Repeat(item, low, high, item.start, self.at)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if not self.peek("{"):
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
            raise self.error(f"a repeat of {low or high}, the limit is {MAX_REPEAT}", self.at)
        self.at = close + 1
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least

    def _atom(self) -> Node | None:
        start = self.at
        char = self.source[start]
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self.char_set(), start, self.at)
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
            raise self.error("nothing to repeat", start)
        if char == "{" and self._is_quantifier():
            raise self.error("nothing to repeat", start)
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
            raise self.error(f"groups are nested deeper than {MAX_DEPTH}", start)
        self.at += 1
        outer = self.flags
        if self.take("?") and not self._group_head(start, outer):
            self.depth -= 1
            return None
        node = self._either()
        if not self.take(")"):
            raise self.error("this '(' is not closed", start)
        self.flags = outer
        self.depth -= 1
        return Sequence((node,), start, self.at) if isinstance(node, Anchor) else node

    def _group_head(self, start: int, outer: Flags) -> bool:
        """Read what follows `(?`. False if the group is complete (a comment, flags for what follows)."""
        refused = {
            "=": "lookahead (?=...)", "!": "negative lookahead (?!...)",
            "<=": "lookbehind (?<=...)", "<!": "negative lookbehind (?<!...)",
            ">": "atomic groups (?>...)", "(": "conditionals (?(...)...)", "P=": "back-references (?P=...)",
        }  # fmt: skip
        for sign, name in refused.items():
            if self.peek(sign):
                raise self.error(f"{name} are not supported: the constraint must be a plain language", start)
        if self.take(":"):
            return True
        if self.take("#"):
            end = self.source.find(")", self.at)
            if end < 0:
                raise self.error("this comment is not closed", start)
            self.at = end + 1
            if self.source[self.head : start].strip() == "":
                self.head = self.at
            return False
        if self.take("P<") or (self.ecma and self.take("<")):
            end = self.source.find(">", self.at)
            name = self.source[self.at : end] if end > 0 else ""
            if not name.isidentifier():
                raise self.error(f"a group's name must be an identifier, not {name!r}", self.at)
            if name in self.names:
                raise self.error(f"the group name {name!r} is used twice", self.at)
            self.names.add(name)
            self.at = end + 1
            return True
        return self._inline_flags(start, outer)

    def _inline_flags(self, start: int, outer: Flags) -> bool:
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
            elif char == "m" and not self.ecma:
                pass  # anchors are at the ends of the whole text only, where both modes agree
            elif char == ":" or char == ")":
                self.flags = Flags(**values)
                if char == ":":
                    return True
                if self.depth == 1 and on and self.source[self.head : start].strip() == "":
                    self.head = self.at
                    return False
                raise self.error("flags for the whole pattern must stand at its start; use (?i:...)", start)
            else:
                raise self.error(f"unknown extension ?{char}", self.at - 1)
        raise self.error("this '(' is not closed", start)

    def _escape(self) -> Node:
        start = self.at
        self.at += 1
        if self.at >= len(self.source):
            raise self.error("the pattern ends in a backslash", start)
        char = self.source[self.at]
        if char in "bB":
            raise self.error(f"word boundaries (\\{char}) are not supported", start)
        if char in "AZ" and not self.ecma:
            self.at += 1
            return Anchor(char == "Z", start, self.at)
        ranges = self.class_escape(char)
        if ranges is not None:
            self.at += 1
            return Chars(ranges, start, self.at)
        if char in "pP" and self.ecma:
            return Chars(self.property_escape(start), start, self.at)
        if char in "123456789" or (char == "k" and self.ecma):
            octal = self.source[self.at : self.at + 3]
            if not (len(octal) == 3 and all(c in "01234567" for c in octal) and char in "0123"):
                raise self.error("back-references are not supported: the language is not regular", start)
        return self._literal(self.char_escape(start), start)
