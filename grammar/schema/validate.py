"""Is a value valid? For values that are listed in a schema (enum, const) and for names of properties.

The whole of what `keywords` calls enforced is decided here by evaluation, so a listed value that another
keyword forbids is never offered.
"""

from __future__ import annotations

from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from grammar.constraint_errors import SchemaError
from grammar.fsm import Fsm
from grammar.schema.document import Document, Place, escape
from grammar.schema.shapes import check
from grammar.schema.strings import NOT_VALUES, NOT_WHOLE, StringRules

_DEPTH = 60


class Validator:
    def __init__(self, document: Document, strings: StringRules) -> None:
        self.document = document
        self.strings = strings
        self._automata: dict[int, tuple[Place, Fsm]] = {}
        self._checked: dict[int, Place] = {}
        self._enums: dict[int, tuple[Place, frozenset[Hashable]]] = {}

    def valid(self, value: Any, place: Place, depth: int = 0) -> bool:
        schema = place.schema
        if isinstance(schema, bool):
            return schema
        if place.key not in self._checked:
            check(place)
            self._checked[place.key] = place
        if depth > _DEPTH:
            raise SchemaError("references lead back here without taking any part of the value", place.pointer)
        at = place.pointer

        def sub(keyword: str, inner: Any, of: Any = value) -> bool:
            return self.valid(of, Place(inner, f"{at}/{keyword}"), depth + 1)

        if "$ref" in schema:
            if not self.valid(value, self.document.resolve(schema["$ref"], at), depth + 1):
                return False
            if self.document.ref_alone:
                return True
        if "type" in schema:
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if not any(has_type(value, t) for t in types):
                return False
        if "enum" in schema and identity(value) not in self._listed(place):
            return False
        if "const" in schema and not equal(value, schema["const"]):
            return False
        if any(equal(value, v) for v in schema.get(NOT_VALUES, ())):
            return False
        if schema.get(NOT_WHOLE) and has_type(value, "integer"):
            return False
        if not all(sub("allOf", s) for s in schema.get("allOf", ())):
            return False
        if "anyOf" in schema and not any(sub("anyOf", s) for s in schema["anyOf"]):
            return False
        if "oneOf" in schema and sum(sub("oneOf", s) for s in schema["oneOf"]) != 1:
            return False
        if "not" in schema and sub("not", schema["not"]):
            return False
        if "if" in schema:
            branch = "then" if sub("if", schema["if"]) else "else"
            if branch in schema and not sub(branch, schema[branch]):
                return False
        if isinstance(value, str):
            return self._text(place).accepts(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _number(value, schema)
        if isinstance(value, list):
            return self._array(value, place, depth)
        if isinstance(value, dict):
            return self._object(value, place, depth)
        return True

    def _listed(self, place: Place) -> frozenset[Hashable]:
        """The values of an enum, as what makes them equal."""
        if place.key not in self._enums:
            assert isinstance(place.schema, dict)
            self._enums[place.key] = (place, frozenset(map(identity, place.schema["enum"])))
        return self._enums[place.key][1]

    def _text(self, place: Place) -> Fsm:
        if place.key not in self._automata:
            self._automata[place.key] = (place, self.strings.of(place))
        return self._automata[place.key][1]

    def _array(self, value: list[Any], place: Place, depth: int) -> bool:
        schema = place.schema
        assert isinstance(schema, dict)
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        if schema.get("uniqueItems") and any(equal(a, b) for i, a in enumerate(value) for b in value[:i]):
            return False
        first, rest = array_items(schema)
        for i, item in enumerate(value):
            inner = first[i] if i < len(first) else rest
            if not self.valid(item, Place(inner, f"{place.pointer}/items"), depth + 1):
                return False
        if "contains" in schema:
            inner = Place(schema["contains"], f"{place.pointer}/contains")
            found = sum(self.valid(item, inner, depth + 1) for item in value)
            return bool(schema.get("minContains", 1) <= found <= schema.get("maxContains", found))
        return True

    def _object(self, value: dict[str, Any], place: Place, depth: int) -> bool:
        schema = place.schema
        assert isinstance(schema, dict)
        at = place.pointer
        if any(name not in value for name in schema.get("required", ())):
            return False
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        for name, item in value.items():
            if "propertyNames" in schema and not self.valid(
                name, Place(schema["propertyNames"], f"{at}/propertyNames"), depth + 1
            ):
                return False
            for inner in self.member_places(place, name):
                if not self.valid(item, inner, depth + 1):
                    return False
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            for name, need in schema.get(keyword, {}).items():
                if name not in value:
                    continue
                if isinstance(need, list):
                    if any(n not in value for n in need):
                        return False
                elif not self.valid(value, Place(need, f"{at}/{keyword}/{name}"), depth + 1):
                    return False
        return True

    def member_places(self, place: Place, name: str) -> list[Place]:
        """What one schema says about the value of property `name`."""
        schema = place.schema
        assert isinstance(schema, dict)
        found = []
        properties = schema.get("properties", {})
        if name in properties:
            found.append(Place(properties[name], f"{place.pointer}/properties/{escape(name)}"))
        for pattern, inner in schema.get("patternProperties", {}).items():
            if self.pattern(pattern, f"{place.pointer}/patternProperties").accepts(name):
                found.append(Place(inner, f"{place.pointer}/patternProperties/{pattern}"))
        for keyword in ("additionalProperties", "unevaluatedProperties"):
            if not found and keyword in schema:
                found.append(Place(schema[keyword], f"{place.pointer}/{keyword}"))
        return found

    def pattern(self, source: str, pointer: str) -> Fsm:
        return self.strings.pattern(source, pointer)


def array_items(schema: dict[str, Any]) -> tuple[list[Any], Any]:
    """Schemas of the first items, and of all after them."""
    if "prefixItems" in schema:
        return list(schema["prefixItems"]), schema.get("items", True)
    items = schema.get("items", True)
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    return [], items


def has_type(value: Any, name: str) -> bool:
    if name == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    classes = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return name in classes and isinstance(value, classes[name])


def identity(value: Any) -> Hashable:
    """Equal for equal JSON values only: true is not 1, 1.0 is 1."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return ("object", frozenset((k, identity(v)) for k, v in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(identity, value)))
    return value  # type: ignore[no-any-return]


def equal(a: Any, b: Any) -> bool:
    """JSON equality."""
    return identity(a) == identity(b)


def _number(value: int | float, schema: dict[str, Any]) -> bool:
    number = Decimal(repr(value))

    def limit(keyword: str) -> Decimal | None:
        bound = schema.get(keyword)
        return None if bound is None or isinstance(bound, bool) else Decimal(repr(bound))

    low, high = limit("minimum"), limit("maximum")
    open_low, open_high = limit("exclusiveMinimum"), limit("exclusiveMaximum")
    if low is not None and (number < low or (schema.get("exclusiveMinimum") is True and number == low)):
        return False
    if high is not None and (number > high or (schema.get("exclusiveMaximum") is True and number == high)):
        return False
    if open_low is not None and number <= open_low:
        return False
    if open_high is not None and number >= open_high:
        return False
    divisor = limit("multipleOf")
    # Decimals would round what has more than 28 digits.
    return divisor is None or (Fraction(number) / Fraction(divisor)).denominator == 1
