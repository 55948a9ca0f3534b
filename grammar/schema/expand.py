"""Combining keywords taken apart: a schema as alternatives, each a conjunction of plain schemas.

`allOf`, `$ref` and siblings are conjunctions; `anyOf`, `if` and dependencies are alternatives; `oneOf` is
`anyOf` where its branches exclude each other, else each branch without the others. `not` is pushed down to
keywords that have an exact opposite. What has none is refused with its pointer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from grammar.constraint_errors import SchemaError, TooLarge
from grammar.schema.document import Document, Place
from grammar.schema.keywords import ANNOTATIONS, BY_TYPE, COMBINING, TYPES
from grammar.schema.shapes import check
from grammar.schema.strings import NOT_PATTERN, NOT_VALUES, NOT_WHOLE

MAX_ALTERNATIVES = 256

Conjunction = tuple[Place, ...]
_PLAIN = {"type", "enum", "const", "unevaluatedProperties", NOT_PATTERN, NOT_VALUES, NOT_WHOLE} | {
    k for keywords in BY_TYPE.values() for k in keywords
}
_DEPENDENCIES = ("dependencies", "dependentRequired", "dependentSchemas")


class Expander:
    """
    possible   tells whether a conjunction has any value; used to see that branches exclude each other
    tick       raises when the time is up
    made       schemas that negation and the like made, by their text; kept from one run to the next
    """

    def __init__(
        self,
        document: Document,
        possible: Callable[[list[Place]], bool],
        tick: Callable[[], None],
        made: dict[str, dict[str, Any]],
    ) -> None:
        self.document = document
        self.possible = possible
        self.tick = tick
        self._made = made
        self._negated: dict[int, tuple[Place, list[list[Place]]]] = {}

    def expand(self, places: Iterable[Place]) -> list[Conjunction]:
        found: list[Conjunction] = []
        self._go([(p, frozenset()) for p in places], (), frozenset(), [], found)
        return found

    def _go(
        self,
        todo: list[tuple[Place, frozenset[int]]],
        plain: Conjunction,
        seen: frozenset[int],
        choices: list[tuple[list[list[Place]], frozenset[int]]],
        found: list[Conjunction],
    ) -> None:
        todo, choices = list(todo), list(choices)
        while todo:
            place, above = todo.pop(0)
            schema = place.schema
            if schema is True:
                continue
            if schema is False:
                return
            assert isinstance(schema, dict)
            if place.key in above:
                raise SchemaError(
                    "a reference leads back here without taking any part of the value, so nothing decides it",
                    place.pointer,
                )
            if place.key in seen:
                continue
            seen |= {place.key}
            above = above | {place.key}
            self._check(place)
            if "$ref" in schema:
                todo.insert(0, (self.document.resolve(schema["$ref"], place.pointer), above))
                if self.document.ref_alone:
                    continue
            if any(k in _PLAIN for k in schema):
                plain = (*plain, place)
            todo.extend((p, above) for p in self._list(place, "allOf"))
            choices.extend((c, above) for c in self._choices(place))
        if not choices:
            found.append(plain)
            if len(found) > MAX_ALTERNATIVES:
                raise TooLarge(
                    f"{plain[0].pointer if plain else '#'}: more than {MAX_ALTERNATIVES} combinations of alternatives",
                    where=plain[0].pointer if plain else "#",
                )
            return
        (options, above), *rest = choices
        for option in options:
            self._go([(p, above) for p in option], plain, seen, rest, found)

    def _check(self, place: Place) -> None:
        schema = place.schema
        assert isinstance(schema, dict)
        self.tick()
        check(place)

    def _list(self, place: Place, keyword: str) -> list[Place]:
        schema = place.schema
        assert isinstance(schema, dict)
        if keyword not in schema:
            return []
        if not isinstance(schema[keyword], list):
            raise SchemaError(f"{keyword} is a list of schemas", f"{place.pointer}/{keyword}")
        return [Place(s, f"{place.pointer}/{keyword}/{i}") for i, s in enumerate(schema[keyword])]

    def _choices(self, place: Place) -> list[list[list[Place]]]:
        schema = place.schema
        assert isinstance(schema, dict)
        found: list[list[list[Place]]] = []
        if "anyOf" in schema:
            found.append([[p] for p in self._list(place, "anyOf")])
        if "oneOf" in schema:
            beside = self.make({k: v for k, v in schema.items() if k in _PLAIN}, place.pointer)
            found.append(self._one_of(self._list(place, "oneOf"), beside, f"{place.pointer}/oneOf"))
        if "not" in schema:
            found.append(self.negate(Place(schema["not"], f"{place.pointer}/not")))
        if "if" in schema and ("then" in schema or "else" in schema):
            condition = Place(schema["if"], f"{place.pointer}/if")
            met = [Place(schema["then"], f"{place.pointer}/then")] if "then" in schema else []
            unmet = [Place(schema["else"], f"{place.pointer}/else")] if "else" in schema else []
            found.append([[condition, *met], *([*n, *unmet] for n in self.negate(condition))])
        for keyword in _DEPENDENCIES:
            for name, need in schema.get(keyword, {}).items():
                at = f"{place.pointer}/{keyword}/{name}"
                without = self.make({"properties": {name: False}}, at)
                needed = [self.make({"type": "object", "required": [name]}, at)]
                if isinstance(need, list):
                    needed.append(self.make({"required": need}, at))
                else:
                    needed.append(Place(need, at))
                found.append([[without], needed])
        return found

    def make(self, schema: dict[str, Any], pointer: str) -> Place:
        """A schema that the document does not contain; equal ones are the same object, so places stay equal."""
        key = json.dumps(schema, sort_keys=False)
        return Place(self._made.setdefault(key, schema), pointer)

    def _one_of(self, branches: list[Place], beside: Place, pointer: str) -> list[list[Place]]:
        """Exactly one branch; `beside` is what the same schema says otherwise."""
        overlaps: dict[int, list[int]] = {i: [] for i in range(len(branches))}
        for i, one in enumerate(branches):
            for j in range(i):
                if self.possible([one, branches[j], beside]):
                    overlaps[i].append(j)
                    overlaps[j].append(i)
        options: list[list[Place]] = []
        for i, one in enumerate(branches):
            alternatives: list[list[Place]] = [[one]]
            for j in overlaps[i]:
                try:
                    without = self.negate(branches[j])
                except SchemaError as error:
                    raise SchemaError(
                        f"branches {min(i, j)} and {max(i, j)} can both match, and to tell them apart fails: "
                        f"{error.message}; use anyOf, or a property with different const values",
                        pointer,
                    ) from None
                alternatives = [[*a, *w] for a in alternatives for w in without]
                if len(alternatives) > MAX_ALTERNATIVES:
                    raise TooLarge(f"{pointer}: more than {MAX_ALTERNATIVES} combinations", where=pointer)
            options += alternatives
        return options

    # negation

    def negate(self, place: Place) -> list[list[Place]]:
        """Alternatives that together hold exactly the values that `place` refuses."""
        schema = place.schema
        if isinstance(schema, bool):
            return [] if schema else [[]]
        if place.key not in self._negated:
            self._negated[place.key] = (place, [])  # a schema that is its own opposite has no value
            self._negated[place.key] = (place, self._opposite(place, schema))
        return self._negated[place.key][1]

    def _opposite(self, place: Place, schema: dict[str, Any]) -> list[list[Place]]:
        at = place.pointer
        self._check(place)
        found: list[list[Place]] = []
        if "$ref" in schema:
            found += self.negate(self.document.resolve(schema["$ref"], at))
            if self.document.ref_alone:
                return found
        for keyword, value in schema.items():
            if keyword in ANNOTATIONS or keyword in (
                "$ref",
                "then",
                "else",
                "additionalItems",
                "minContains",
            ):
                continue
            made = self._opposite_of(place, keyword, value)
            if made is None:
                if keyword not in _PLAIN and keyword not in COMBINING and keyword != "if":
                    continue  # not a keyword
                raise SchemaError(f"{keyword} has no exact opposite here", f"{at}/{keyword}")
            found += [
                [self.make(m, f"{at}/{keyword}") if isinstance(m, dict) else m for m in one] for one in made
            ]
        return found

    def _opposite_of(self, place: Place, keyword: str, value: Any) -> list[list[Any]] | None:
        schema = place.schema
        assert isinstance(schema, dict)
        counts = {
            "minLength": ("string", "maxLength", -1), "maxLength": ("string", "minLength", 1),
            "minItems": ("array", "maxItems", -1), "maxItems": ("array", "minItems", 1),
            "minProperties": ("object", "maxProperties", -1), "maxProperties": ("object", "minProperties", 1),
        }  # fmt: skip
        if keyword in counts and isinstance(value, int):
            kind, other, change = counts[keyword]
            return [[{"type": kind, other: value + change}]] if value + change >= 0 else []
        bounds = {"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum", "exclusiveMaximum": "minimum"}  # fmt: skip
        if keyword in bounds:
            if isinstance(value, bool) or any(isinstance(schema.get(k), bool) for k in bounds):
                return None
            return [[{"type": "number", bounds[keyword]: value}]]
        if keyword == "type":
            return self._other_types(value if isinstance(value, list) else [value])
        if keyword in ("enum", "const"):
            return [[{NOT_VALUES: value if keyword == "enum" else [value]}]]
        if keyword == "pattern":
            return [[{"type": "string", NOT_PATTERN: value}]]
        if keyword == "required":
            return [[{"type": "object", "properties": {name: False}}] for name in value]
        if keyword == "properties":
            return [
                [{"type": "object", "required": [k], "properties": {k: {"not": v}}}] for k, v in value.items()
            ]
        if keyword == "items" and not isinstance(value, list) and "prefixItems" not in schema:
            return [[{"type": "array", "contains": {"not": value}}]]
        if keyword == "contains":
            if schema.get("minContains", 1) != 1:
                return None
            return [[{"type": "array", "items": {"not": value}}]]
        if keyword == "not":
            return [[Place(value, f"{place.pointer}/not")]]
        if keyword == "allOf":
            return [one for p in self._list(place, "allOf") for one in self.negate(p)]
        if keyword == "anyOf":
            return [[{"not": p.schema} for p in self._list(place, "anyOf")]]
        if keyword == "if":
            yes = [[Place(value, place.pointer), {"not": schema["then"]}]] if "then" in schema else []
            no = [[{"not": value}, {"not": schema["else"]}]] if "else" in schema else []
            return yes + no
        if keyword in ("additionalProperties", "unevaluatedProperties") and value in (True, {}):
            return []
        if keyword == "uniqueItems" and value is False:
            return []
        return None

    def _other_types(self, types: list[str]) -> list[list[Any]]:
        others = [t for t in TYPES if t not in types and t != "integer"]
        if "number" in types:
            return [[{"type": others}]] if others else []
        if "integer" in types:
            others.remove("number")
            fractional = [{"type": "number", NOT_WHOLE: True}]
            return [[{"type": others}], fractional] if others else [fractional]
        return [[{"type": others}]] if others else []
