"""JSON as text: the terms of its tokens and of any value, written without free whitespace.

Spelling: a string whose content is free may use every JSON escape (no lone surrogates); a string that is
told from others (names, enumerations, patterns) has one spelling, that of `json.dumps(ensure_ascii=False)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

from grammar import codepoints as cp
from grammar.byte_masks import byte_mask
from grammar.fsm import Fsm
from grammar.measure import Begun, Measure
from grammar.term_arena import EMPTY, Limits
from grammar.terms import Terms

SPELLED: dict[int, bytes] = {
    b: json.dumps(chr(b), ensure_ascii=False)[1:-1].encode() for b in [*range(0x20), 0x22, 0x5C]
}
PLAIN: cp.Ranges = cp.invert(((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
_BEYOND = cp.subtract(PLAIN, ((0, 0x7F),))
_LEADS = byte_mask(0xC2, 0xF4)
_ASCII_PLAIN = byte_mask(0x20, 0x7F) & ~(1 << 0x22 | 1 << 0x5C)


def _stands_for_itself(text: str) -> bool:
    return text.isascii() and all(_ASCII_PLAIN >> ord(c) & 1 for c in text)


def _to_differ(names: int) -> int:
    """Bytes after which a text can be none of so many names, whatever it began with, closing quote included."""
    more, texts = 1, _ASCII_PLAIN.bit_count()
    while texts <= names:
        more, texts = more + 1, texts * _ASCII_PLAIN.bit_count()
    return more + 1


@dataclass(frozen=True, slots=True)
class Separators:
    """What stands between items and after names."""

    item: bytes = b","
    name: bytes = b":"


COMPACT = Separators()
SPACED = Separators(b", ", b": ")


class JsonText:
    """Terms of JSON in one arena."""

    def __init__(self, terms: Terms, separators: Separators = COMPACT) -> None:
        self.terms = terms
        self.comma = terms.literal(separators.item)
        self.colon = terms.literal(separators.name)
        self.quote = terms.literal(b'"')
        self.char = self._char()
        self.spelled_char = terms.alt([terms.chars(PLAIN), *(terms.literal(t) for t in SPELLED.values())])
        self._spelled = terms.sequence(self.quote, terms.repeat(self.spelled_char, 0, -1), self.quote)
        self._any_rule: int | None = None
        self.begun_with: Begun | None = None
        self._names: dict[tuple[str, ...], int] = {}
        digits = terms.byte_set(byte_mask(0x30, 0x39))
        sign = terms.repeat(terms.literal(b"-"), 0, 1)
        first = terms.byte_set(byte_mask(0x31, 0x39))
        natural = terms.alt([terms.literal(b"0"), terms.cat(first, terms.repeat(digits, 0, -1))])
        integer = terms.cat(sign, natural)
        fraction = terms.sequence(terms.literal(b"."), terms.repeat(digits, 1, -1))
        plus_minus = terms.repeat(terms.byte_set(1 << 0x2B | 1 << 0x2D), 0, 1)
        e = terms.byte_set(1 << 0x45 | 1 << 0x65)
        exponent = terms.sequence(e, plus_minus, terms.repeat(digits, 1, -1))
        number = terms.sequence(integer, terms.repeat(fraction, 0, 1), terms.repeat(exponent, 0, 1))
        self.integer, self.number = terms.on_its_own(integer), terms.on_its_own(number)

    @staticmethod
    def begun(limits: Limits, separators: Separators = COMPACT) -> JsonText:
        """In an arena of its own, where any value is known to its last byte."""
        known = _explored(separators)
        found = copy(known)
        found.terms, found._names = known.terms.copy(limits), {}
        return found

    def _char(self) -> int:
        """One character inside a string, raw or by any escape."""
        terms = self.terms
        hexadecimal = terms.byte_set(byte_mask(0x30, 0x39) | byte_mask(0x41, 0x46) | byte_mask(0x61, 0x66))
        d = terms.byte_set(1 << 0x44 | 1 << 0x64)
        not_d = terms.byte_set(byte_mask(0x30, 0x39) | byte_mask(0x41, 0x43) | byte_mask(0x45, 0x46) | byte_mask(0x61, 0x63) | byte_mask(0x65, 0x66))  # fmt: skip
        low = terms.byte_set(byte_mask(0x30, 0x37))
        high_surrogate = terms.byte_set(byte_mask(0x38, 0x39) | byte_mask(0x41, 0x42) | byte_mask(0x61, 0x62))
        low_surrogate = terms.byte_set(byte_mask(0x43, 0x46) | byte_mask(0x63, 0x66))
        two = terms.cat(hexadecimal, hexadecimal)
        pair = terms.sequence(d, high_surrogate, two, terms.literal(b"\\u"), d, low_surrogate, two)
        point = terms.alt([terms.sequence(not_d, hexadecimal, two), terms.sequence(d, low, two), pair])
        short = terms.byte_set(sum(1 << b for b in b'"\\/bfnrt'))
        escape = terms.cat(terms.literal(b"\\"), terms.alt([short, terms.cat(terms.literal(b"u"), point)]))
        return terms.alt([terms.chars(PLAIN), escape])

    def string(self, low: int = 0, high: int = -1) -> int:
        """Any string of `low` to `high` characters (-1: no bound), quotes included."""
        rest = self.terms.cat(self.terms.repeat(self.char, low, high), self.quote)
        if low == 0 and high < 0:
            self.terms.mark_free(rest, 1, 0)
        return self.terms.string(low, high, self.terms.cat(self.quote, rest))

    def string_of(self, language: Fsm, low: int = 0, high: int = -1) -> int:
        """A string whose decoded content is in `language` and has `low` to `high` (-1: any number of) characters."""
        inside = self.terms.automaton(language.automaton(SPELLED, low, high))
        return self.terms.sequence(self.quote, inside, self.quote)

    def name_except(self, names: Iterable[str]) -> int:
        """A string that is none of `names`."""
        listed = sorted(set(names))
        if not listed:
            return self.string()
        key = tuple(listed)
        if key not in self._names:
            self._names[key] = self.terms.cat(self.quote, self._except(listed, 0))
        return self._names[key]

    def _except(self, names: list[str], depth: int) -> int:
        """What may follow the shared first `depth` characters of `names`, closing quote included."""
        terms = self.terms
        if len(names) == 1 and _stands_for_itself(names[0][depth:]):
            rest = terms.unlike(names[0][depth:].encode(), _ASCII_PLAIN | _LEADS | 1 << 0x5C, self._spelled)
            return terms.mark_free(rest, _to_differ(len(names)))
        groups: dict[str, list[str]] = {}
        ends = False
        for name in names:
            if len(name) == depth:
                ends = True
            else:
                groups.setdefault(name[depth], []).append(name)
        options = [self._diverge(groups)]
        for char, group in groups.items():
            options.append(terms.cat(self.literal_inside(char), self._except(group, depth + 1)))
        if not ends:
            options.append(self.quote)
        return terms.mark_free(terms.alt(options), _to_differ(len(names)))

    def _diverge(self, chars: Iterable[str]) -> int:
        """One character that is none of `chars`, and the rest of the string, in one spelling."""
        terms = self.terms
        mask, beyond, spelled = _ASCII_PLAIN, [], dict(SPELLED)
        for char in chars:
            point = ord(char)
            if point in spelled:
                del spelled[point]
            elif point < 0x80:
                mask &= ~(1 << point)
            else:
                beyond.append((point, point))
        others = []
        if not beyond:
            mask |= _LEADS
        else:
            others.append(terms.chars_then(cp.subtract(_BEYOND, cp.normalise(beyond)), self._ended))
        if len(spelled) == len(SPELLED):
            mask |= 1 << 0x5C
        else:
            last: dict[bytes, int] = {}
            for escape in spelled.values():
                last[escape[:-1]] = last.get(escape[:-1], 0) | 1 << escape[-1]
            others += [terms.cat(terms.literal(lead), self._ended(end)) for lead, end in last.items()]
        return terms.alt([terms.enter(mask, self._spelled), *others])

    def _ended(self, mask: int) -> int:
        """The last byte of a character, and the rest of the string in its one spelling."""
        rest = self.terms.expanded_rest(self._spelled)
        return self.terms.cat(self.terms.byte_set(mask), rest)

    def literal_inside(self, text: str) -> int:
        """`text` as it stands between quotes."""
        return self.terms.literal(json.dumps(text, ensure_ascii=False)[1:-1].encode())

    def name(self, text: str) -> int:
        """A name and what stands after it."""
        return self.terms.sequence(self.value(text), self.colon)

    def value(self, value: Any) -> int:
        """One JSON value. A number that is whole may be written with or without `.0`."""
        terms = self.terms
        if isinstance(value, dict):
            members = [self.terms.cat(self.name(k), self.value(v)) for k, v in value.items()]
            return self._enclosed(b"{", members, b"}")
        if isinstance(value, list):
            return self._enclosed(b"[", [self.value(v) for v in value], b"]")
        if isinstance(value, int | float) and not isinstance(value, bool):
            spellings = {json.dumps(value)}
            if float(value).is_integer() and abs(value) < 1 << 53:
                spellings |= {str(int(value)), f"{int(value)}.0"}
            return terms.alt(terms.literal(s.encode()) for s in spellings)
        return terms.literal(json.dumps(value, ensure_ascii=False).encode())

    def _enclosed(self, left: bytes, items: list[int], right: bytes) -> int:
        parts = [self.terms.literal(left)]
        for i, item in enumerate(items):
            parts += [self.comma, item] if i else [item]
        return self.terms.sequence(*parts, self.terms.literal(right))

    def any_value(self) -> int:
        """Any JSON value; objects and arrays are rules that nest without end."""
        terms = self.terms
        if self._any_rule is None:
            self._any_rule = terms.rule()
            value = terms.call(self._any_rule)
            member = terms.sequence(self.string(), self.colon, value)
            words = [terms.literal(w) for w in (b"true", b"false", b"null")]
            options = [
                self.string(),
                self.number,
                self.listing(b"{", member, b"}"),
                self.listing(b"[", value, b"]"),
            ]
            terms.define(self._any_rule, terms.alt([*options, *words]))
        return terms.call(self._any_rule)

    def listing(self, left: bytes, item: int, right: bytes, low: int = 0, high: int = -1) -> int:
        """`low` to `high` items between `left` and `right`."""
        terms = self.terms
        end = terms.literal(right)
        if item == EMPTY or high == 0:
            return EMPTY if low else terms.cat(terms.literal(left), end)
        more = terms.repeat(terms.cat(self.comma, item), max(low - 1, 0), high - 1 if high > 0 else -1)
        some = terms.sequence(item, more, end)
        return terms.cat(terms.literal(left), some if low else terms.alt([some, end]))


@cache
def _explored(separators: Separators) -> JsonText:
    text = JsonText(Terms(), separators)
    terms = text.terms
    values = (text.any_value(), text.number, text.integer)
    order = list(values)
    for term in order:  # no stack of terms: each is explored once
        for _, pushed, target in terms.arcs(term):
            order += {target, *pushed}.difference(order)
    text.begun_with = Begun(terms, values, Measure(terms, terms.rule_count))
    return text
