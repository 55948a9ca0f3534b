"""What schemas say about a string, as automata over its decoded text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grammar import codepoints as cp
from grammar import regex, regex_syntax
from grammar.constraint_errors import ConstraintError, SchemaError, TooLarge
from grammar.fsm import Fsm, any_text, of_texts
from grammar.schema.document import Place
from grammar.schema.formats import FORMATS
from grammar.term_arena import Limits
from grammar.terms import Terms

# keywords that negation makes; no document has them
NOT_PATTERN, NOT_VALUES, NOT_WHOLE = "\0not-pattern", "\0not-values", "\0not-whole"

_ENDLESS = 1 << 28
_LIMITS = Limits(states=20_000, seconds=5.0)


class StringRules:
    """Automata of patterns, formats and lengths, each built once."""

    def __init__(self, ignore_unknown_formats: bool = False) -> None:
        self.ignore_unknown_formats = ignore_unknown_formats
        self._patterns: dict[str, Fsm] = {}
        self._formats: dict[str, Fsm] = {}
        self._all = any_text()

    def pattern(self, source: Any, pointer: str) -> Fsm:
        """Texts in which the pattern matches somewhere."""
        if not isinstance(source, str):
            raise SchemaError("a pattern is a string", pointer)
        found = self._patterns.get(source)
        if found is None:
            try:
                parsed = regex_syntax.parse(source, "ecma")
                terms = Terms(_LIMITS)
                found = Fsm.of_terms(terms, regex.searching(terms, parsed))
            except TooLarge as error:
                raise TooLarge(f"{pointer}: pattern: {error.message}", where=pointer) from None
            except ConstraintError as error:
                raise SchemaError(f"pattern: {error.message}", pointer) from None
            self._patterns[source] = found
        return found

    def format(self, name: Any, pointer: str) -> Fsm | None:
        """None if the format says nothing about strings."""
        if not isinstance(name, str):
            raise SchemaError("a format is a string", f"{pointer}/format")
        if name not in FORMATS:
            if self.ignore_unknown_formats:
                return None
            raise SchemaError(
                f"the format {name!r} is not known, so it would not be enforced; known are {', '.join(sorted(FORMATS))}",
                f"{pointer}/format",
            )
        if name not in self._formats:
            self._formats[name] = regex.compile_regex(FORMATS[name])
        return self._formats[name]

    def lengths(self, places: Iterable[Place]) -> tuple[int, int]:
        """The least and the greatest (-1: any) number of characters."""
        low, high = 0, -1
        for place in places:
            assert isinstance(place.schema, dict)
            low = max(low, count_of(place, "minLength", 0))
            most = count_of(place, "maxLength", -1)
            high = most if high < 0 or 0 <= most < high else high
        return low, high

    def parts(self, places: Iterable[Place]) -> list[Fsm]:
        """One automaton for each pattern, format and exclusion; all must accept."""
        found = []
        for place in places:
            schema = place.schema
            assert isinstance(schema, dict)
            if "pattern" in schema:
                found.append(self.pattern(schema["pattern"], f"{place.pointer}/pattern"))
            if "format" in schema:
                automaton = self.format(schema["format"], place.pointer)
                if automaton is not None:
                    found.append(automaton)
            if NOT_PATTERN in schema:
                found.append(self.pattern(schema[NOT_PATTERN], place.pointer).complement(_LIMITS))
            texts = [v.encode() for v in schema.get(NOT_VALUES, ()) if isinstance(v, str)]
            if texts:
                found.append(self._all.difference(of_texts(texts), _LIMITS))
        return found

    def of(self, *places: Place) -> Fsm:
        """The strings that all `places` accept, their combining keywords and types left out."""
        return self.within(self.parts(places), *self.lengths(places), places[0].pointer if places else "#")

    def within(self, parts: list[Fsm], low: int, high: int, pointer: str) -> Fsm:
        """The intersection of `parts`, of `low` to `high` (-1: any number of) characters."""
        try:
            found = self._all
            for i, part in enumerate(parts):
                found = part if i == 0 else found.intersection(part, _LIMITS)
            if low > 0 or high >= 0:
                terms = Terms(_LIMITS)
                length = terms.repeat(terms.chars(cp.ALL), low, high)
                found = found.intersection(Fsm.of_terms(terms, length), _LIMITS)
        except TooLarge as error:
            raise TooLarge(f"{pointer}: {error.message}", where=pointer) from None
        return found


def count_of(place: Place, keyword: str, default: int) -> int:
    """The value of a keyword that counts."""
    assert isinstance(place.schema, dict)
    value = place.schema.get(keyword, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or (value < 0 and keyword in place.schema):
        raise SchemaError(
            f"{keyword} is a whole number, at least 0, not {value!r}", f"{place.pointer}/{keyword}"
        )
    if keyword.startswith("max") and value >= _ENDLESS:
        return -1  # longer than any text that can be generated
    if value >= _ENDLESS:
        raise TooLarge(
            f"{place.pointer}/{keyword}: no text has {value} parts", where=f"{place.pointer}/{keyword}"
        )
    return value
