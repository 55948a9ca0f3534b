"""The text of a grammar to its rules.

Two ways of writing are read. EBNF: `name ::= "text" [a-z]+ (other | "x"){1,3}`, beginning with `root`. Lark:
`name: "text" /regex/ [optional] other~1..3`, terminals in capitals, `%ignore`, `%import common.X`, beginning with `start`. A grammar
in which a line begins with `name ::=` is EBNF. What only shapes a parse tree (`?rule`, `!rule`, `-> alias`, priorities of rules) is read over; what would
change the language and cannot be kept is refused with its line and column.

Both are read without a lexer: a text belongs to the language if the rules can spell it, however it would be cut into tokens. So
priorities of terminals have no meaning here and are refused.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from grammar import codepoints as cp
from grammar import regex_syntax, regex_tree
from grammar.constraint_errors import ConstraintError, RegexError, caret

MAX_LENGTH = 1 << 16
MAX_DEPTH = 100
MAX_REPEAT = 10_000


class EbnfError(ConstraintError):
    """`line` and `column` count from 1."""

    def __init__(self, problem: str, source: str, position: int) -> None:
        starts = [0, *(m.end() for m in re.finditer("\n", source))]
        self.line = bisect.bisect_right(starts, position)
        self.column = position - starts[self.line - 1] + 1
        self.problem = problem
        text = source[starts[self.line - 1] :].partition("\n")[0]
        where = f"line {self.line}, column {self.column}"
        super().__init__(f"{problem} at {where}\n{caret(text, self.column - 1)}", where=where)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Characters, as a regular expression's node."""

    node: regex_tree.Node
    at: int


@dataclass(frozen=True, slots=True)
class Ref:
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` from `low` to `high` (None: any number of) times."""

    item: Node
    low: int
    high: int | None
    at: int


Node = Leaf | Ref | Sequence | Either | Repeat


def children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Sequence):
        return node.items
    if isinstance(node, Either):
        return node.options
    return (node.item,) if isinstance(node, Repeat) else ()


def references(node: Node) -> Iterator[Ref]:
    """Every use of a rule in `node`."""
    if isinstance(node, Ref):
        yield node
    for child in children(node):
        yield from references(child)


@dataclass(frozen=True)
class Grammar:
    """`ignored` may stand before each terminal and at the end; `places` are positions of rules in `source`."""

    source: str
    start: str
    rules: dict[str, Node]
    ignored: tuple[Node, ...] = ()
    places: dict[str, int] = field(default_factory=dict)
    lexical: bool = False  # capitals are terminals

    def is_terminal(self, name: str) -> bool:
        return self.lexical and name.lstrip("_")[:1].isupper()


COMMON = r"""
DIGIT: /[0-9]/
HEXDIGIT: /[0-9A-Fa-f]/
INT: /[0-9]+/
SIGNED_INT: /[+-]?[0-9]+/
DECIMAL: /[0-9]+\.[0-9]*|\.[0-9]+/
FLOAT: /[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?/
SIGNED_FLOAT: /[+-]?/ FLOAT
NUMBER: FLOAT | INT
SIGNED_NUMBER: /[+-]?/ NUMBER
ESCAPED_STRING: /"([^"\\\n]|\\[^\n])*"/
LCASE_LETTER: /[a-z]/
UCASE_LETTER: /[A-Z]/
LETTER: /[A-Za-z]/
WORD: /[A-Za-z]+/
CNAME: /[A-Za-z_][A-Za-z0-9_]*/
WS_INLINE: /[ \t]+/
WS: /[ \t\f\r\n]+/
CR: /\r/
LF: /\n/
NEWLINE: /(\r?\n)+/
SH_COMMENT: /#[^\n]*/
CPP_COMMENT: /\/\/[^\n]*/
C_COMMENT: /\/\*([^*]|\*+[^*\/])*\*+\//
SQL_COMMENT: /--[^\n]*/
"""
"""The terminals of Lark's `common`, as languages: one string, one comment, not the longest that a lexer would find."""


def parse_grammar(source: str) -> Grammar:
    """Raises EbnfError with the place of what is wrong or cannot be enforced."""
    if len(source) > MAX_LENGTH:
        raise EbnfError(f"the grammar has {len(source)} characters, the limit is {MAX_LENGTH}", source, 0)
    return _Parser(source, lark=_EBNF_RULE.search(source) is None).grammar()


_EBNF_RULE = re.compile(r"^\s*[A-Za-z_][\w-]*\s*::=", re.MULTILINE)
_EBNF_HEAD = re.compile(r"([A-Za-z_][\w-]*)\s*::=")
_LARK_HEAD = re.compile(r"[!?]*(_?[A-Za-z][A-Za-z0-9_]*)[ \t]*(\{[^}]*\})?[ \t]*(\.[ \t]*-?\d+)?[ \t]*:")
_EBNF_NAME = re.compile(r"[A-Za-z_][\w-]*")
_LARK_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9_]*")
_COUNTS = re.compile(r"\{\s*(\d+)\s*(,)?\s*(\d+)?\s*\}")
_TIMES = re.compile(r"~\s*(\d+)\s*(?:\.\.\s*(\d+))?")
_REGEX = re.compile(r"/((?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\[])+)/([a-z]*)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "b": "\b", "0": "\0"}


class _Parser:
    """Recursive descent over the characters."""

    def __init__(self, source: str, lark: bool) -> None:
        self.source = source
        self.lark = lark
        self.at = 0
        self.depth = 0
        self.rules: dict[str, Node] = {}
        self.places: dict[str, int] = {}
        self.ignored: list[Node] = []

    def error(self, problem: str, at: int | None = None) -> EbnfError:
        return EbnfError(problem, self.source, min(self.at if at is None else at, len(self.source)))

    def grammar(self) -> Grammar:
        start = "start" if self.lark else "root"
        self.skip()
        while self.at < len(self.source):
            if self.lark and self.source[self.at] == "%":
                self.statement()
            else:
                self.rule()
            self.skip()
        if start not in self.rules:
            near = ", ".join(list(self.rules)[:5]) or "none"
            raise self.error(f"there is no rule {start!r}, with which texts begin (rules: {near})", 0)
        found = Grammar(self.source, start, self.rules, tuple(self.ignored), self.places, self.lark)
        self.check_names(found)
        return found

    def check_names(self, grammar: Grammar) -> None:
        for node in (*grammar.rules.values(), *grammar.ignored):
            for ref in references(node):
                if ref.name not in grammar.rules:
                    close = difflib.get_close_matches(ref.name, grammar.rules, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise self.error(f"there is no rule {ref.name!r}{hint}", ref.at)

    def skip(self) -> None:
        """White space and comments."""
        source = self.source
        while self.at < len(source):
            if source[self.at].isspace():
                self.at += 1
            elif source[self.at] == "#" or (self.lark and source.startswith("//", self.at)):
                end = source.find("\n", self.at)
                self.at = len(source) if end < 0 else end
            else:
                return

    def head(self) -> re.Match[str] | None:
        """The beginning of the next rule, if it is here."""
        if not self.lark:
            return _EBNF_HEAD.match(self.source, self.at)
        line = self.source[self.source.rfind("\n", 0, self.at) + 1 : self.at]
        return None if line.strip() else _LARK_HEAD.match(self.source, self.at)

    def rule(self) -> None:
        at, head = self.at, self.head()
        if head is None:
            sign = ":" if self.lark else "::="
            raise self.error(f"expected a rule (name {sign} ...), found {self.shown()}")
        name = head.group(1)
        if name in self.rules:
            raise self.error(f"rule {name!r} is defined twice")
        if self.lark:
            if head.group(2):
                raise self.error(f"{name!r} is a template, and those are not read; write its uses out")
            if head.group(3) and name.lstrip("_")[:1].isupper():
                raise self.error(
                    f"terminal {name!r} has a priority, which only a lexer could follow; tell the terminals apart instead"
                )
        self.at = head.end()
        self.places[name] = at
        self.rules[name] = self.either()
        if self.at < len(self.source) and self.head() is None and not self.peek("%"):
            raise self.error(f"expected an item, '|' or the next rule, found {self.shown()}")

    def shown(self) -> str:
        return repr(self.source[self.at : self.at + 12]) if self.at < len(self.source) else "the end"

    def peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        self.skip()
        return True

    # -- statements of Lark -----------------------------------------------------------------------------------

    def statement(self) -> None:
        at = self.at
        word = re.compile(r"%[a-z]+").match(self.source, at)
        kind = word.group() if word else "%"
        if kind not in ("%ignore", "%import"):
            raise self.error(f"{kind} is not read; write the rules themselves")
        self.at += len(kind)
        self.skip()
        if kind == "%ignore":
            self.ignored.append(self.either())
        else:
            self.imports()

    def imports(self) -> None:
        match = re.compile(r"([A-Za-z_.][\w.]*)[ \t]*(\([^)]*\)|->[ \t]*(\w+))?").match(self.source, self.at)
        path = match.group(1) if match else ""
        module, _, name = path.partition(".")
        if match is None or module != "common":
            raise self.error(f"only terminals of common can be imported, not {path!r}; write the rule itself")
        listed = (match.group(2) or "").startswith("(")
        names = [n.strip() for n in match.group(2)[1:-1].split(",")] if listed else [name]
        known = _common()
        for wanted in names:
            if wanted not in known:
                close = difflib.get_close_matches(wanted, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
                raise self.error(f"common has no terminal {wanted!r}{hint}")
            self.add_common(wanted, known)
            alias = match.group(3)
            if alias is not None:
                self.rules[alias] = Ref(wanted, self.at)
                self.places[alias] = self.at
        self.at = match.end()

    def add_common(self, name: str, known: dict[str, Node]) -> None:
        """With what it refers to; all at the place of the import."""
        if name not in self.rules:
            self.rules[name] = known[name]
            self.places[name] = self.at
            for ref in references(known[name]):
                self.add_common(ref.name, known)

    # -- what may stand in a rule -----------------------------------------------------------------------------

    def either(self) -> Node:
        at = self.at
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"groups are nested deeper than {MAX_DEPTH}")
        self.skip()
        self.take("|")  # Lark lets a rule's first line be empty
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        self.depth -= 1
        return options[0] if len(options) == 1 else Either(tuple(options), at)

    def sequence(self) -> Node:
        at = self.at
        items: list[Node] = []
        while self.at < len(self.source) and self.source[self.at] not in "|)]" and self.head() is None:
            if self.lark and self.peek("%"):
                break
            if self.lark and self.take("->"):
                alias = _LARK_NAME.match(self.source, self.at)
                if alias is None:
                    raise self.error("expected a name behind ->")
                self.at = alias.end()
                self.skip()
                break
            items.append(self.repeated(self.atom()))
        return items[0] if len(items) == 1 else Sequence(tuple(items), at)

    def repeated(self, item: Node) -> Node:
        at = self.at
        while self.at < len(self.source) and self.head() is None:  # Lark's ?rule begins like a repeat
            sign = self.source[self.at]
            counts = (_TIMES if self.lark else _COUNTS).match(self.source, self.at)
            if sign in "*+?":
                self.at += 1
                item = Repeat(item, sign == "+", 1 if sign == "?" else None, at)
            elif counts is not None:
                low = int(counts.group(1)[:9])
                last = counts.group(2 if self.lark else 3)
                high: int | None = low if last is None else int(last[:9])
                if not self.lark and counts.group(2) and last is None:
                    high = None
                if max(low, high or 0) > MAX_REPEAT or (high is not None and high < low):
                    raise self.error(
                        f"a repeat from {low} to {high}; counts rise and are at most {MAX_REPEAT}"
                    )
                self.at = counts.end()
                item = Repeat(item, low, high, at)
            else:
                break
            self.skip()
        return item

    def atom(self) -> Node:
        at, sign = self.at, self.source[self.at]
        if sign in "\"'" and (sign == '"' or not self.lark):
            return self.text(sign)
        if sign == "(":
            return self.group(")")
        if sign == "[":
            return Repeat(self.group("]"), 0, 1, at) if self.lark else self.character_class()
        if sign == "/" and self.lark:
            return self.regex()
        if sign == "." and not self.lark:
            self.at += 1
            self.skip()
            return Leaf(regex_tree.Chars(cp.ALL, 0, 1), at)
        name = (_LARK_NAME if self.lark else _EBNF_NAME).match(self.source, at)
        if name is None:
            raise self.error(f"expected a text, a name or a group, found {self.shown()}")
        self.at = name.end()
        if self.lark and self.peek("{"):
            raise self.error(
                f"{name.group()}{{...}} uses a template, and those are not read; write it out", at
            )
        self.skip()
        return Ref(name.group(), at)

    def group(self, end: str) -> Node:
        at = self.at
        self.at += 1
        found = self.either()
        if not self.take(end):
            raise self.error(f"the group that begins here is not closed with {end!r}", at)
        return found

    def text(self, quote: str) -> Node:
        at = self.at
        value = self.quoted(quote)
        if self.lark and self.peek("i") and not _LARK_NAME.match(self.source, self.at + 1):
            self.at += 1
            self.skip()
            return self.leaf("(?i)" + re.escape(value), at)
        self.skip()
        if self.lark and self.take(".."):
            if not self.peek('"'):
                raise self.error('expected the last character of a range, as in "a".."z"')
            last = self.quoted('"')
            self.skip()
            if len(value) != 1 or len(last) != 1 or last < value:
                raise self.error(
                    f"a range goes from one character up to another, not from {value!r} to {last!r}", at
                )
            return Leaf(regex_tree.Chars(((ord(value), ord(last)),), 0, 1), at)
        characters = tuple(regex_tree.Chars(((ord(c), ord(c)),), i, i + 1) for i, c in enumerate(value))
        return Leaf(regex_tree.Sequence(characters, 0, len(value)), at)

    def quoted(self, quote: str) -> str:
        at = self.at
        self.at += 1
        found: list[str] = []
        while True:
            if self.at >= len(self.source) or self.source[self.at] == "\n":
                raise self.error("the text that begins here is not closed", at)
            sign = self.source[self.at]
            self.at += 1
            if sign == quote:
                break
            found.append(self.escaped() if sign == "\\" else sign)
        value = "".join(found)
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise self.error("the text holds half of a surrogate pair", at)
        return value

    def escaped(self) -> str:
        """What a backslash and the following characters stand for."""
        sign = self.source[self.at : self.at + 1]
        digits = {"x": 2, "u": 4, "U": 8}.get(sign)
        if digits is not None:
            code = self.source[self.at + 1 : self.at + 1 + digits]
            if not re.fullmatch(rf"[0-9A-Fa-f]{{{digits}}}", code) or int(code, 16) > cp.MAX:
                raise self.error(f"\\{sign} needs {digits} hexadecimal digits of a character", self.at - 1)
            self.at += 1 + digits
            return chr(int(code, 16))
        if sign in _ESCAPES or sign in "\"'\\/[]-^":
            self.at += 1
            return _ESCAPES.get(sign, sign)
        raise self.error(f"\\{sign} is not an escape; a backslash itself is \\\\", self.at - 1)

    def character_class(self) -> Node:
        at = self.at
        end = at + 1 + self.source.startswith("^", at + 1)
        while end < len(self.source) and self.source[end] != "]":
            end += 2 if self.source[end] == "\\" else 1
        if end >= len(self.source):
            raise self.error("the class that begins here is not closed with ']'", at)
        self.at = end + 1
        self.skip()
        return self.leaf(self.source[at : end + 1], at)

    def regex(self) -> Node:
        at, match = self.at, _REGEX.match(self.source, self.at)
        if match is None:
            raise self.error("the regular expression that begins here is not closed with '/'")
        flags = match.group(2)
        if set(flags) - set("imsux"):
            raise self.error(f"a regular expression has the flags i, m, s, u and x, not {flags!r}")
        self.at = match.end()
        self.skip()
        named = "".join(sorted(set(flags) - {"m"}))  # no anchors, so m changes nothing
        return self.leaf((f"(?{named})" if named else "") + match.group(1).replace(r"\/", "/"), at)

    def leaf(self, pattern: str, at: int) -> Leaf:
        """A regular expression as a leaf."""
        try:
            found = regex_syntax.parse(pattern)
        except RegexError as error:
            raise self.error(error.problem, at) from None
        if any(a.at_start or a.at_end for a in found.alternatives):
            raise self.error("an anchor has no meaning inside of a grammar", at)
        if len(found.alternatives) == 1:
            return Leaf(found.alternatives[0].node, at)
        return Leaf(regex_tree.Either(tuple(a.node for a in found.alternatives), 0, len(pattern)), at)


def _common() -> dict[str, Node]:
    parser = _Parser(COMMON, lark=True)
    parser.skip()
    while parser.at < len(COMMON):
        parser.rule()
        parser.skip()
    return parser.rules
