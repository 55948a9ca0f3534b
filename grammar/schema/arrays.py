"""Arrays: a first part position by position, then items alike."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from grammar.constraint_errors import SchemaError
from grammar.schema.document import Place
from grammar.schema.expand import Conjunction
from grammar.schema.strings import NOT_VALUES, count_of
from grammar.schema.validate import array_items, equal
from grammar.term_arena import EMPTY

if TYPE_CHECKING:
    from grammar.schema.compiler import SchemaCompiler

_MAX_UNIQUE = 5  # different values whose orders are listed


def array_term(compiler: SchemaCompiler, plains: Conjunction) -> int:
    """The arrays that all `plains` accept."""
    low, high = 0, -1
    for place in plains:
        assert isinstance(place.schema, dict)
        low = max(low, count_of(place, "minItems", 0))
        most = count_of(place, "maxItems", -1)
        high = most if high < 0 or 0 <= most < high else high
        if any(isinstance(v, list) for v in place.schema.get(NOT_VALUES, ())):
            raise SchemaError("an array cannot be excluded by value", place.pointer)
    if 0 <= high < low:
        return EMPTY
    contained = _contained(plains)
    for place in plains:
        assert isinstance(place.schema, dict)
        if place.schema.get("uniqueItems") and high != 1 and high != 0:
            return _unique(compiler, plains, low, high, f"{place.pointer}/uniqueItems")
    if contained:
        return _containing(compiler, plains, contained, low, high)
    return _listed(compiler, plains, low, high)


def _item_places(plains: Conjunction, position: int) -> list[Place]:
    found = []
    for place in plains:
        assert isinstance(place.schema, dict)
        first, rest = array_items(place.schema)
        inner = first[position] if position < len(first) else rest
        name = f"items/{position}" if position < len(first) else "items"
        found.append(Place(inner, f"{place.pointer}/{name}"))
    return found


def _prefix(plains: Conjunction) -> int:
    return max((len(array_items(p.schema)[0]) for p in plains if isinstance(p.schema, dict)), default=0)


def _listed(compiler: SchemaCompiler, plains: Conjunction, low: int, high: int) -> int:
    terms, text = compiler.terms, compiler.text
    prefix = _prefix(plains)
    rest = compiler.value(_item_places(plains, prefix))
    if prefix == 0:
        return text.listing(b"[", rest, b"]", low, high)
    end = terms.literal(b"]")
    room = -1 if high < 0 else max(high - prefix, 0)
    tail = terms.cat(terms.repeat(terms.cat(text.comma, rest), max(low - prefix, 0), room), end)
    if rest == EMPTY or room == 0:
        tail = end if low <= prefix else EMPTY
    for position in range(prefix - 1, -1, -1):
        item = compiler.value(_item_places(plains, position))
        more = terms.sequence(text.comma, item, tail) if position else terms.cat(item, tail)
        if 0 <= high <= position:
            more = EMPTY
        tail = terms.alt([more, end]) if low <= position else more
    return terms.cat(terms.literal(b"["), tail)


def _contained(plains: Conjunction) -> list[Place]:
    found = []
    for place in plains:
        schema = place.schema
        assert isinstance(schema, dict)
        if "contains" not in schema:
            continue
        for keyword, usual in (("minContains", 1), ("maxContains", None)):
            if schema.get(keyword, usual) != usual:
                raise SchemaError(
                    f"{keyword} other than {usual} is not supported", f"{place.pointer}/{keyword}"
                )
        found.append(Place(schema["contains"], f"{place.pointer}/contains"))
    return found


def _containing(
    compiler: SchemaCompiler, plains: Conjunction, contained: list[Place], low: int, high: int
) -> int:
    """Some item matches `contains`; which one is a choice."""
    terms, text = compiler.terms, compiler.text
    if len(contained) > 1 or _prefix(plains):
        raise SchemaError(
            "contains beside another contains, or beside items by position", contained[0].pointer
        )
    item = compiler.value(_item_places(plains, 0))
    chosen = compiler.value([*_item_places(plains, 0), contained[0]])
    if low <= 1 and high < 0:
        before = terms.repeat(terms.cat(item, text.comma), 0, -1)
        after = terms.repeat(terms.cat(text.comma, item), 0, -1)
        return terms.sequence(terms.literal(b"["), before, chosen, after, terms.literal(b"]"))
    most = high if high >= 0 else low
    if most > 32:
        raise SchemaError("contains beside minItems or maxItems above 32", contained[0].pointer)
    options = []
    for position in range(most):
        before = terms.repeat(terms.cat(item, text.comma), position, position)
        room = -1 if high < 0 else high - position - 1
        after = terms.repeat(terms.cat(text.comma, item), max(low - position - 1, 0), room)
        options.append(terms.sequence(terms.literal(b"["), before, chosen, after, terms.literal(b"]")))
    return terms.alt(options)


def _unique(compiler: SchemaCompiler, plains: Conjunction, low: int, high: int, pointer: str) -> int:
    """Different items, where the possible values are few."""
    if _prefix(plains) or _contained(plains):
        raise SchemaError("uniqueItems beside items by position or contains is not supported", pointer)
    values = compiler.listed_values(_item_places(plains, 0))
    if values is None:
        raise SchemaError(
            "uniqueItems is enforced only if items is an enum (or maxItems is 1); list the values", pointer
        )
    distinct = [v for i, v in enumerate(values) if not any(equal(v, w) for w in values[:i])]
    if len(distinct) > _MAX_UNIQUE and (high < 0 or high > 2):
        raise SchemaError(
            f"uniqueItems over {len(distinct)} values is too many orders; at most {_MAX_UNIQUE} values, or maxItems 2",
            pointer,
        )
    most = len(distinct) if high < 0 else min(high, len(distinct))
    terms, text = compiler.terms, compiler.text
    options = []
    for count in range(low, most + 1):
        for order in permutations(distinct, count):
            options.append(text.value(list(order)))
    return terms.alt(options)
