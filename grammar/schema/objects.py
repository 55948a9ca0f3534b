"""Objects: declared properties in their order, then the others.

The order is that in which properties are declared (those that are only required come after them), and
properties that are not declared follow; or any order, if that was asked for. Which of them are present,
and their values, is free where the schema leaves it free.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from grammar.constraint_errors import SchemaError
from grammar.fsm import Fsm, any_text, of_texts
from grammar.order_terms import AnyOrder
from grammar.schema.document import Place, escape
from grammar.schema.expand import Conjunction
from grammar.schema.strings import NOT_VALUES, count_of
from grammar.term_arena import EMPTY

if TYPE_CHECKING:
    from grammar.schema.compiler import SchemaCompiler

_OF_OTHERS = {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}
_MAX_PATTERNS = 4


@dataclass(frozen=True, slots=True)
class Member:
    """`"name":value`; `required` ones are always there."""

    name: str
    term: int
    required: bool


def required_names(plains: Conjunction) -> list[str]:
    found: dict[str, None] = {}
    for place in plains:
        assert isinstance(place.schema, dict)
        names = place.schema.get("required", [])
        if isinstance(names, bool):  # draft 3 wrote it at the property itself
            raise SchemaError(
                "required is a list of names (a boolean is draft 3)", f"{place.pointer}/required"
            )
        found.update(dict.fromkeys(names))
    return list(found)


def declared_names(plains: Conjunction) -> list[str]:
    found: dict[str, None] = {}
    for place in plains:
        assert isinstance(place.schema, dict)
        found.update(dict.fromkeys(place.schema.get("properties", {})))
    found.update(dict.fromkeys(required_names(plains)))
    return list(found)


def needed_names(compiler: SchemaCompiler, plains: Conjunction) -> list[str]:
    """Those that always come: the required ones, of strict objects also all that are declared (to have some value)."""
    needed = dict.fromkeys(required_names(plains))
    if compiler.objects == "strict":
        for place in plains:
            assert isinstance(place.schema, dict)
            needed.update({n: None for n, s in place.schema.get("properties", {}).items() if s is not False})
    return list(needed)


def member_places(compiler: SchemaCompiler, plains: Conjunction, name: str) -> list[Place]:
    return [inner for place in plains for inner in compiler.validator.member_places(place, name)]


def _member_value(compiler: SchemaCompiler, places: list[Place]) -> int:
    """The value of a member; in any order on its own, so that which members are left is no part of its states."""
    value = compiler.value(places)
    return compiler.terms.on_its_own(value) if compiler.any_order else value


def object_term(compiler: SchemaCompiler, plains: Conjunction) -> int:
    """The objects that all `plains` accept."""
    needed = set(needed_names(compiler, plains))
    name_rules = [
        Place(p.schema["propertyNames"], f"{p.pointer}/propertyNames")
        for p in plains
        if isinstance(p.schema, dict) and "propertyNames" in p.schema
    ]
    members = []
    names = declared_names(plains)
    for name in names:
        allowed = all(compiler.validator.valid(name, rule) for rule in name_rules)
        value = _member_value(compiler, member_places(compiler, plains, name)) if allowed else EMPTY
        if value == EMPTY and name in needed:
            compiler.conflicts.append(f"{plains[0].pointer}/properties/{escape(name)}")
            return EMPTY
        if value == EMPTY:
            compiler.dead[f"{plains[0].pointer}/properties/{escape(name)}"] = None
        else:
            members.append(Member(name, compiler.terms.cat(compiler.text.name(name), value), name in needed))
    other = _other_member(compiler, plains, names, name_rules)
    low, high = 0, -1
    for place in plains:
        assert isinstance(place.schema, dict)
        low = max(low, count_of(place, "minProperties", 0))
        most = count_of(place, "maxProperties", -1)
        high = most if high < 0 or 0 <= most < high else high
        if any(isinstance(v, dict) for v in place.schema.get(NOT_VALUES, ())):
            raise SchemaError("an object cannot be excluded by value", place.pointer)
    low = 0 if low <= len(needed) else low
    if high >= 0 and high >= len(members) and other == EMPTY:
        high = -1
    if low > 1 and other != EMPTY:
        raise SchemaError(
            "minProperties is enforced above 1 only if additionalProperties is false, since a name can come twice",
            f"{plains[0].pointer}/minProperties",
        )
    if 0 <= high < len(needed):
        compiler.conflicts.append(f"{plains[0].pointer}/maxProperties")
    return _Writer(compiler, members, other, low, high).term()


class _Writer:
    """Members in order with commas between them, counted where their number is bounded."""

    def __init__(
        self, compiler: SchemaCompiler, members: list[Member], other: int, low: int, high: int
    ) -> None:
        self.terms = compiler.terms
        self.comma = compiler.text.comma
        self.end = self.terms.literal(b"}")
        self.members = members
        self.any_order = compiler.any_order
        self.other = other
        self.low, self.high = low, high
        self.cap = high if high >= 0 else max(low, 1)  # counts above it are alike

    def term(self) -> int:
        if self.any_order and len(self.members) > (0 if self.other != EMPTY else 1):
            members = tuple(m.term for m in self.members)
            needed = sum(1 << i for i, m in enumerate(self.members) if m.required)
            order = AnyOrder(members, needed, self.other, self.comma, self.end, self.low, self.high)
            return self.terms.cat(self.terms.literal(b"{"), self.terms.any_order(order))
        tails = [self._others(count) for count in range(self.cap + 1)]
        for member in reversed(self.members):
            tails = [self._member(member, count, tails) for count in range(self.cap + 1)]
        return self.terms.cat(self.terms.literal(b"{"), tails[0])

    def _end(self, count: int) -> int:
        return self.end if count >= self.low else EMPTY

    def _member(self, member: Member, count: int, tails: list[int]) -> int:
        after = count + 1
        if self.high < 0:
            after = min(after, self.cap)
        taken = EMPTY
        if after <= self.cap:
            taken = self.terms.cat(member.term, tails[after])
            if count:
                taken = self.terms.cat(self.comma, taken)
        return taken if member.required else self.terms.otherwise(taken, tails[count])

    def _others(self, count: int) -> int:
        """The other properties, and the end."""
        terms = self.terms
        if self.other == EMPTY:
            return self._end(count)
        more = terms.cat(self.comma, self.other)
        if self.high >= 0:
            rest = terms.cat(terms.repeat(more, 0, max(self.high - count - 1, 0)), self.end)
            if count >= self.high:
                return self._end(count)
        else:
            rest = terms.cat(terms.repeat(more, 0, -1), self.end)
        first = terms.cat(more if count else self.other, rest)
        return terms.alt([first, self._end(count)])


def _other_member(
    compiler: SchemaCompiler, plains: Conjunction, names: list[str], name_rules: list[Place]
) -> int:
    """`"name":value` of a property that is not declared; EMPTY if there can be none."""
    terms, text = compiler.terms, compiler.text
    patterns: dict[str, Fsm] = {}
    for place in plains:
        assert isinstance(place.schema, dict)
        for source in place.schema.get("patternProperties", {}):
            patterns[source] = compiler.strings.pattern(source, f"{place.pointer}/patternProperties")
    said = {k for p in plains if isinstance(p.schema, dict) for k in p.schema}
    if compiler.objects != "open" and "properties" in said and not said & _OF_OTHERS:
        return EMPTY
    if not patterns and not name_rules:
        value = _member_value(compiler, _additional(plains, ()))
        if value == EMPTY:
            return EMPTY
        return terms.sequence(text.name_except(names), text.colon, value)
    if len(patterns) > _MAX_PATTERNS:
        raise SchemaError(f"more than {_MAX_PATTERNS} patternProperties for one object", plains[0].pointer)
    language = any_text()
    for rule in name_rules:
        language = language.intersection(compiler.text_language(rule))
    if names:
        language = language.difference(of_texts([n.encode() for n in names]))
    options = []
    for count in range(len(patterns) + 1):
        for chosen in combinations(patterns, count):
            keys = language
            for source, automaton in patterns.items():
                keys = keys.intersection(automaton) if source in chosen else keys.difference(automaton)
            if keys.is_empty:
                continue
            value = _member_value(compiler, _additional(plains, chosen))
            if value != EMPTY:
                options.append(terms.sequence(text.string_of(keys), text.colon, value))
    return terms.alt(options)


def _additional(plains: Conjunction, chosen: tuple[str, ...]) -> list[Place]:
    """What the schemas say about a property that matches exactly the patterns `chosen`."""
    found = []
    for place in plains:
        schema: Any = place.schema
        matching = [s for s in schema.get("patternProperties", {}) if s in chosen]
        found += [
            Place(schema["patternProperties"][s], f"{place.pointer}/patternProperties/{s}") for s in matching
        ]
        for keyword in ("additionalProperties", "unevaluatedProperties"):
            if not matching and keyword in schema:
                found.append(Place(schema[keyword], f"{place.pointer}/{keyword}"))
                break
    return found
