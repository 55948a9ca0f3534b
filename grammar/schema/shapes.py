"""Is every keyword of a subschema one that is enforced, and its value of its kind? Asked before anything else reads it."""

from __future__ import annotations

import json

from grammar.constraint_errors import SchemaError
from grammar.schema.document import Place
from grammar.schema.keywords import COMBINING, REFUSED, TYPES

SHAPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "an object": (
        "properties patternProperties dependencies dependentRequired dependentSchemas", dict,
    ),
    "a list": ("allOf anyOf oneOf enum required prefixItems", list),
    "a string": ("pattern format $ref", str),
    "a number": (
        "minimum maximum multipleOf minLength maxLength minItems maxItems minProperties maxProperties "
        "minContains maxContains",
        (int, float),
    ),
    "a number or a boolean": ("exclusiveMinimum exclusiveMaximum", (int, float, bool)),
    "true or false": ("uniqueItems", bool),
    "a schema": (
        "not if then else contains propertyNames additionalProperties unevaluatedProperties", (dict, bool),
    ),
    "a schema or a list of schemas": ("items additionalItems", (dict, bool, list)),
}  # fmt: skip
"""What the value of a keyword is: the name of the kind, the keywords, the types."""


def check(place: Place) -> None:
    """Refuse a keyword that is not enforced, or whose value is not of its kind."""
    schema = place.schema
    assert isinstance(schema, dict)
    _check_shapes(place)
    for keyword, reason in REFUSED.items():
        if keyword in schema and schema[keyword] is not True:
            raise SchemaError(f"{keyword} is not supported: {reason}", f"{place.pointer}/{keyword}")
    types = schema.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if not isinstance(name, str) or name not in TYPES:
            raise SchemaError(
                f"{name!r} is not a type; types are {', '.join(TYPES)}", f"{place.pointer}/type"
            )
    if "unevaluatedProperties" in schema and schema["unevaluatedProperties"] is not True:
        others = [k for k in COMBINING if k in schema]
        if others:
            raise SchemaError(
                f"unevaluatedProperties beside {others[0]} is not supported; use additionalProperties",
                f"{place.pointer}/unevaluatedProperties",
            )


def _check_shapes(place: Place) -> None:
    schema = place.schema
    assert isinstance(schema, dict)
    for kind, (keywords, types) in SHAPES.items():
        for keyword in keywords.split():
            if keyword not in schema:
                continue
            value = schema[keyword]
            wrong = not isinstance(value, types) or (kind == "a number" and isinstance(value, bool))
            if not wrong and keyword == "required":
                wrong = not all(isinstance(name, str) for name in value)
            if not wrong and kind == "an object":
                wrong = not all(isinstance(v, dict | bool | list) for v in value.values())
            if wrong:
                shown = json.dumps(value)[:40]
                raise SchemaError(f"{keyword} is {kind}, not {shown}", f"{place.pointer}/{keyword}")
    if "multipleOf" in schema and schema["multipleOf"] <= 0:
        shown = json.dumps(schema["multipleOf"])
        raise SchemaError(f"multipleOf is above 0, not {shown}", f"{place.pointer}/multipleOf")
