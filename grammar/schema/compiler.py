"""A JSON Schema to one term: the texts of exactly its valid values, in one way of writing them.

Every object and array schema (more exactly, every conjunction of them that occurs) is a rule, compiled
once; a reference to a schema that is being compiled is a call of its rule, so recursion costs nothing.
A rule that no finite text matches (an object that must contain itself) is found afterwards, and the whole
is compiled again without it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from grammar.constraint_errors import SchemaError, TooLarge, Unsatisfiable
from grammar.fsm import Fsm, of_texts
from grammar.measure import INFINITE, Measure
from grammar.schema import numbers
from grammar.schema.arrays import array_term
from grammar.schema.document import Document, Place, escape
from grammar.schema.expand import Conjunction, Expander
from grammar.schema.keywords import BY_TYPE, TYPES
from grammar.schema.objects import member_places, needed_names, object_term
from grammar.schema.strings import NOT_PATTERN, NOT_VALUES, NOT_WHOLE, StringRules
from grammar.schema.text import COMPACT, JsonText, Separators
from grammar.schema.validate import Validator
from grammar.term_arena import DEFAULT_LIMITS, EMPTY, Limits
from grammar.terms import Terms

_EAGER_DEPTH = 8  # levels of required properties looked into to see that an object is impossible
_MAX_RULES = 20_000

RuleKey = tuple[str, frozenset[int]]
Objects = Literal["open", "closed", "strict"]


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    terms: Terms
    start: int
    rules: int
    measure: Measure
    unreachable: tuple[str, ...] = ()  # pointers of what no accepted text uses


@dataclass(frozen=True, slots=True)
class SchemaOptions:
    """How values are written, and what is read over; see `grammar.compile.Options`."""

    separators: Separators = COMPACT
    ignore_unknown_formats: bool = False
    any_order: bool = False
    objects: Objects = "open"


def compile_schema(
    document: Document, options: SchemaOptions = SchemaOptions(), *, limits: Limits = DEFAULT_LIMITS
) -> CompiledSchema:
    """Raises SchemaError, TooLarge or Unsatisfiable; never leaves a keyword out."""
    return _Settled(document, options, limits).alone()


class SchemaSet:
    """Several schemas in one arena, which may hold other terms too."""

    def __init__(self, terms: Terms, options: SchemaOptions = SchemaOptions()) -> None:
        self.terms = terms
        self.options = options
        self._documents: list[Document] = []

    def add(self, document: Document) -> int:
        """The term of the document's values. Raises like `compile_schema`."""
        self._documents.append(document)  # rules are known by the identity of its parts
        settled = _Settled(document, self.options, self.terms.limits)
        settled.alone()
        return settled.compiler(JsonText(self.terms, self.options.separators)).whole()


class _Settled:
    """A document with the rules that are known to have no finite text."""

    def __init__(self, document: Document, options: SchemaOptions, limits: Limits) -> None:
        self.document = document
        self.options = options
        self.limits = limits
        self.impossible: set[RuleKey] = set()
        self.made: dict[str, dict[str, Any]] = {}
        self.strings = StringRules(options.ignore_unknown_formats)

    def compiler(self, text: JsonText) -> SchemaCompiler:
        o = self.options
        return SchemaCompiler(self.document, self.strings, o, self.impossible, self.made, text)

    def alone(self) -> CompiledSchema:
        """In an arena of its own, again until no rule is found to be impossible."""
        deadline = time.monotonic() + self.limits.seconds
        conflicts: list[str] = []
        while True:
            limits = replace(self.limits, seconds=deadline - time.monotonic())
            text = JsonText.begun(limits, self.options.separators)
            compiler = self.compiler(text)
            terms = text.terms
            start = compiler.whole()
            measure = Measure(terms, compiler.rules, text.begun_with)
            dead = {compiler.rule_keys[r] for r in measure.endless_rules if r in compiler.rule_keys}
            conflicts = compiler.conflicts or [compiler.pointers[k] for k in dead] or conflicts
            if not dead - self.impossible:
                break
            self.impossible |= dead
        if start == EMPTY or measure.shortest(start) >= INFINITE:
            raise self._unsatisfiable(conflicts)
        return CompiledSchema(terms, start, compiler.rules, measure, compiler.unreachable)

    def _unsatisfiable(self, conflicts: list[str]) -> Unsatisfiable:
        """Is it the schema, or only that its objects are strict?"""
        if self.options.objects == "strict":
            _Settled(self.document, replace(self.options, objects="closed"), self.limits).alone()
            where = conflicts[0] if conflicts else "#"
            return Unsatisfiable(
                f"{where}: no value is left if every declared property has to come, as strict objects have it; "
                "let it be null or another type too, do not declare it, or take closed objects",
                where=where,
            )
        return Unsatisfiable("no value is valid for this schema", where="#")


class SchemaCompiler:
    def __init__(
        self,
        document: Document,
        strings: StringRules,
        options: SchemaOptions,
        impossible: set[RuleKey],
        made: dict[str, dict[str, Any]],
        text: JsonText,
    ) -> None:
        self.terms = text.terms
        self.document = document
        self.text = text
        self.strings = strings
        self.any_order = options.any_order
        self.objects = options.objects
        self.conflicts: list[str] = []  # pointers of what strict objects left without a value
        self.dead: dict[
            str, None
        ] = {}  # pointers of alternatives, properties and listed values that are no value
        self._live: set[str] = set()  # and of those that are one somewhere
        self.validator = Validator(document, strings)
        self.expander = Expander(
            document, lambda places: self.value(places) != EMPTY, self.terms.check_time, made
        )
        self.rule_keys: dict[int, RuleKey] = {}
        self.pointers: dict[RuleKey, str] = {}
        self.rules = 0
        self._impossible = impossible
        self._values: dict[frozenset[int], int] = {}
        self._calls: dict[RuleKey, int] = {}
        self._todo: list[tuple[int, str, Conjunction]] = []
        self._keep: list[list[Place]] = []
        self._numbers: dict[numbers.Bounds, int] = {}
        self._depth = 0

    def value(self, places: list[Place]) -> int:
        """The term of the values that all `places` accept; EMPTY if that is seen to be none."""
        key = frozenset(p.key for p in places if p.schema is not True)
        found = self._values.get(key)
        if found is None:
            self._keep.append(places)
            options = []
            for plains in self.expander.expand(places):
                options.append(self._conjunction(plains))
                if plains and options[-1] == EMPTY:
                    self.dead[plains[-1].pointer] = None
                elif plains:
                    self._live.add(plains[-1].pointer)
            found = self.terms.alt(options)
            self._values[key] = found
        return found

    @property
    def unreachable(self) -> tuple[str, ...]:
        return tuple(sorted(p for p in self.dead if p not in self._live))

    def whole(self) -> int:
        """The term of the document's values, with all its rules."""
        start = self.value([Place(self.document.root, "#")])
        self.drain()
        return start

    def drain(self) -> None:
        """Give every rule that was called its body."""
        while self._todo:
            rule, kind, plains = self._todo.pop()
            self.terms.check_time()
            body = object_term(self, plains) if kind == "object" else array_term(self, plains)
            if body != EMPTY:
                self.terms.define(rule, body)
        self.rules = self.terms.rule_count

    def listed_values(self, places: list[Place]) -> list[Any] | None:
        """All values that `places` accept, if an enum or const lists them."""
        found: list[Any] = []
        for plains in self.expander.expand(places):
            listed = self._listed(plains)
            if listed is None:
                return None
            found += listed
        return found

    def text_language(self, place: Place) -> Fsm:
        """The strings that a schema accepts, decoded."""
        language: Fsm | None = None
        for plains in self.expander.expand([place]):
            if "string" not in _types(plains):
                continue
            listed = self._listed(plains)
            if listed is not None:
                part = of_texts([v.encode() for v in listed if isinstance(v, str)])
            else:
                part = self.strings.of(*plains)
            language = part if language is None else language.union(part)
        return of_texts([]) if language is None else language

    def _listed(self, plains: Conjunction) -> list[Any] | None:
        for place in plains:
            assert isinstance(place.schema, dict)
            for keyword in ("const", "enum"):
                if keyword in place.schema:
                    values = [place.schema["const"]] if keyword == "const" else place.schema["enum"]
                    if not isinstance(values, list):
                        raise SchemaError("enum is a list of values", f"{place.pointer}/enum")
                    good = [all(self.validator.valid(v, p) for p in plains) for v in values]
                    for i, fits in enumerate(good):
                        where = f"{place.pointer}/{keyword}/{i}"
                        if fits:
                            self._live.add(where)
                        else:
                            self.dead[where] = None
                    return [v for v, fits in zip(values, good, strict=True) if fits]
        return None

    def _conjunction(self, plains: Conjunction) -> int:
        types = _types(plains)
        listed = self._listed(plains)
        if listed is not None:
            return self.terms.listed(self.text.value(v) for v in listed)
        if len(types) == len(TYPES) and not any(_says(p, k) for p in plains for k in BY_TYPE):
            excluded = any(NOT_VALUES in p.schema for p in plains if isinstance(p.schema, dict))
            if not excluded:
                return self.text.any_value()
        options = []
        for kind in ("object", "array"):
            if kind in types:
                options.append(self._rule(kind, plains))
        if "string" in types:
            options.append(self._string(plains))
        if "number" in types or "integer" in types:
            options.append(self._number(plains, whole="number" not in types))
        words = {"boolean": (True, False), "null": (None,)}
        for kind, values in words.items():
            if kind in types:
                options += [
                    self.text.value(v) for v in values if all(self.validator.valid(v, p) for p in plains)
                ]
        return self.terms.alt(options)

    def _rule(self, kind: str, plains: Conjunction) -> int:
        relevant = tuple(p for p in plains if _says(p, kind))
        key = (kind, frozenset(p.key for p in relevant))
        if key in self._impossible:
            return EMPTY
        if key not in self._calls:
            if len(self._calls) >= _MAX_RULES:
                raise SchemaError(f"more than {_MAX_RULES:,} different objects and arrays", plains[0].pointer)
            rule = self.terms.rule()
            self.rule_keys[rule] = key
            self.pointers[key] = relevant[0].pointer if relevant else "#"
            self._calls[key] = self.terms.call(rule)
            if kind == "object" and self._impossible_object(relevant):
                self._calls[key] = EMPTY
            else:
                self._todo.append((rule, kind, relevant))
        return self._calls[key]

    def _impossible_object(self, plains: Conjunction) -> bool:
        """Is a required property seen to have no value? Tells the branches of a oneOf apart."""
        if self._depth >= _EAGER_DEPTH:
            return False
        self._depth += 1
        try:
            for name in needed_names(self, plains):
                if self.value(member_places(self, plains, name)) == EMPTY:
                    self.conflicts.append(f"{plains[0].pointer}/properties/{escape(name)}")
                    return True
            return False
        finally:
            self._depth -= 1

    def _string(self, plains: Conjunction) -> int:
        relevant = [p for p in plains if _says(p, "string")]
        low, high = self.strings.lengths(relevant)
        if 0 <= high < low:
            return EMPTY
        parts = self.strings.parts(relevant)
        if not parts:
            return self.text.string(low, high)
        language = self.strings.within(parts, 0, -1, relevant[0].pointer)
        return EMPTY if language.is_empty else self.text.string_of(language, low, high)

    def _number(self, plains: Conjunction, whole: bool) -> int:
        bounds = _bounds(plains, whole, self.strings.ignore_unknown_formats)
        if bounds.free:
            return self.text.integer if whole else self.text.number
        if bounds not in self._numbers:
            try:
                language = numbers.language(bounds)
            except TooLarge as error:
                of = next(p for p in plains if isinstance(p.schema, dict) and "multipleOf" in p.schema)
                where = f"{of.pointer}/multipleOf"
                raise TooLarge(f"{where}: {error.message}", where=where) from None
            self._numbers[bounds] = EMPTY if language.is_empty else self.terms.automaton(language.automaton())
        return self._numbers[bounds]


def _types(plains: Conjunction) -> set[str]:
    types = set(TYPES)
    for place in plains:
        assert isinstance(place.schema, dict)
        if "type" in place.schema:
            named = place.schema["type"]
            allowed = set(named if isinstance(named, list) else [named])
            if "number" in allowed:
                allowed.add("integer")
            types &= allowed
    return types


def _says(place: Place, kind: str) -> bool:
    """Does the schema say anything about values of this type beside that they may be of it?"""
    schema = place.schema
    assert isinstance(schema, dict)
    extra = {
        "string": (NOT_PATTERN, NOT_VALUES),
        "object": (NOT_VALUES, "unevaluatedProperties"),
        "array": (NOT_VALUES,),
        "number": (NOT_VALUES, NOT_WHOLE),
    }
    return any(k in schema for k in (*BY_TYPE[kind], *extra[kind]))


def _bounds(plains: Conjunction, whole: bool, ignore_unknown_formats: bool) -> numbers.Bounds:
    low: tuple[Decimal, bool] | None = None
    high: tuple[Decimal, bool] | None = None
    divisors: list[Decimal] = []
    excluded: list[Decimal] = []
    fractional = False
    for place in plains:
        schema: Any = place.schema
        fractional |= NOT_WHOLE in schema
        excluded += [_decimal(v, place) for v in schema.get(NOT_VALUES, ()) if _is_number(v)]
        if "multipleOf" in schema:
            divisors.append(_decimal(schema["multipleOf"], place))
        lows = [
            (schema.get("minimum"), schema.get("exclusiveMinimum") is True),
            (schema.get("exclusiveMinimum"), True),
        ]
        highs = [
            (schema.get("maximum"), schema.get("exclusiveMaximum") is True),
            (schema.get("exclusiveMaximum"), True),
        ]
        for value, open in lows:
            if value is not None and not isinstance(value, bool):
                bound = (_decimal(value, place), open)
                low = bound if low is None or bound > low else low
        for value, open in highs:
            if value is not None and not isinstance(value, bool):
                bound = (_decimal(value, place), open)
                high = bound if high is None or (-bound[0], bound[1]) > (-high[0], high[1]) else high
    return numbers.Bounds(
        low[0] if low else None, bool(low and low[1]), high[0] if high else None, bool(high and high[1]),
        whole, fractional, tuple(sorted(set(divisors))), tuple(sorted(set(excluded))),
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decimal(value: Any, place: Place) -> Decimal:
    if not _is_number(value):
        raise SchemaError(f"a bound is a number, not {value!r}", place.pointer)
    number = Decimal(repr(value))
    if abs(number.adjusted()) > 400 or not number.is_finite():
        raise SchemaError(f"the bound {value!r} has too many digits", place.pointer)
    return number
