"""What a schema's document says: references between its resources, values that JSON cannot have, keywords inside of listed values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from grammar.compile import compile_constraint
from grammar.constraint_errors import ConstraintError, SchemaError

jsonschema = pytest.importorskip("jsonschema")

INNER = {
    "$id": "b.json",
    "type": "object",
    "properties": {"c": {"$ref": "#/$defs/d"}},
    "required": ["c"],
    "$defs": {"d": {"type": "integer"}},
}
TREE = {
    "$dynamicAnchor": "node",
    "type": "object",
    "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$dynamicRef": "#node"}}},
    "required": ["v"],
}

EXACT: list[tuple[str, Any, list[Any], list[Any]]] = [
    (
        "a reference begins at the resource that it stands in",
        {"$id": "http://x.org/a", "properties": {"b": {"$ref": "b.json"}}, "required": ["b"], "$defs": {"b": INNER, "d": {"type": "string"}}},
        [{"b": {"c": 1}}],
        [{"b": {"c": "x"}}, {"b": {}}],
    ),
    (
        "also where a pointer leads to that resource",
        {"$ref": "#/$defs/b/properties/c", "$defs": {"b": INNER, "d": {"type": "string"}}},
        [1],
        ["x"],
    ),
    (
        "two resources have an anchor of one name",
        {"$ref": "u:b", "$defs": {"A": {"$id": "u:a", "$anchor": "f", "type": "integer"}, "B": {"$id": "u:b", "$ref": "#f", "$defs": {"z": {"$anchor": "f", "type": "string"}}}}},
        ["x"],
        [1],
    ),
    (
        "an $id inside of a listed value is no resource",
        {"$ref": "#/$defs/r", "enum": [{"$id": "u:x", "k": 1}, 1], "$defs": {"r": {"type": "integer"}}},
        [1],
        [{"$id": "u:x", "k": 1}],
    ),
    ("a dynamic reference where nothing can redirect it", TREE, [{"v": 1, "kids": [{"v": 2}]}], [{"v": 1, "kids": [{}]}]),
    ("how often a listed value contains", {"enum": [[1, 1], [1]], "contains": {"const": 1}, "minContains": 2}, [[1, 1]], [[1]]),
    ("and at most", {"enum": [[1, 1], [1]], "contains": {"const": 1}, "maxContains": 1}, [[1]], [[1, 1]]),
]  # fmt: skip


@pytest.mark.parametrize(("title", "schema", "good", "bad"), EXACT, ids=[t for t, *_ in EXACT])
def test_exact(title: str, schema: Any, good: list[Any], bad: list[Any]) -> None:
    constraint = compile_constraint("json_schema", schema)
    validator = jsonschema.Draft202012Validator(schema)
    for value in good:
        assert validator.is_valid(value) and constraint.accepts(json.dumps(value, separators=(",", ":"))), (
            value
        )
    for value in bad:
        assert not validator.is_valid(value), value
        assert not constraint.accepts(json.dumps(value, separators=(",", ":"))), value


REFUSED: list[tuple[Any, str, str]] = [
    ('{"properties": {"a": {"const": 1e400}}}', "#/properties/a/const", "no number of JSON"),
    ('{"enum": [1, NaN]}', "#/enum/1", "no number of JSON"),
    ({"default": float("inf")}, "#/default", "no number of JSON"),
    ('{"enum": ["\\ud800"]}', "#/enum/0", "half of a surrogate pair"),
    ('{"properties": {"\\udc00": {}}}', "#/properties", "half of a surrogate pair"),
    ('{"const": ' + "1" * 5000 + "}", "#", "the schema is not JSON"),
    ({"maximum": 10**5000}, "#/maximum", "more than 14000 bits"),
    ({"$ref": "#/allOf/²", "allOf": [{}]}, "#/$ref", "names nothing in this document"),
    ({"$id": "http://[", "$ref": "b", "$defs": {"a": {"$id": "c"}}}, "#/$ref", "is outside of this document"),
    ({"multipleOf": 0.123456789}, "#/multipleOf", "more than 20,000 states"),
    ({"type": "integer", "multipleOf": 0}, "#/multipleOf", "above 0, not 0"),
    ({"allOf": [{"const": 0, "multipleOf": 0}]}, "#/allOf/0/multipleOf", "above 0, not 0"),
    ({"enum": [1, "a"], "multipleOf": -0.5}, "#/multipleOf", "above 0, not -0.5"),
    ({"divisibleBy": 2}, "#/divisibleBy", "use multipleOf"),
    ({"not": {"contains": {"const": 1}, "minContains": 0}}, "#/not/contains", "no exact opposite"),
    ({"enum": [{"a": 1}], "properties": {"a": {"$dynamicRef": "#x"}}}, "#/properties/a/$dynamicRef", "is not supported"),
    ({"enum": [{"a": 1}], "allOf": [{"properties": {}}], "unevaluatedProperties": False}, "#/unevaluatedProperties", "beside allOf"),
    ({"$dynamicAnchor": "n", "$ref": "t", "$defs": {"t": {"$id": "t", **TREE}}}, "#/$defs/t/properties/kids/items/$dynamicRef", "is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "pointer", "message"), REFUSED, ids=[f"{p} {m}" for _, p, m in REFUSED])
def test_refused(schema: Any, pointer: str, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        compile_constraint("json_schema", schema)
    assert caught.value.where == pointer
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [(r"^\c1$", r"\c needs a letter"), ("(?m:^a)", "unknown extension ?m")],
)
def test_patterns_that_no_validator_reads_alike_are_refused(pattern: str, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        compile_constraint("json_schema", {"type": "string", "pattern": pattern})
    assert problem in str(caught.value)


def test_half_of_a_surrogate_pair_is_no_other_character() -> None:
    pair = compile_constraint("json_schema", {"type": "string", "pattern": r"^\ud83d\ude42$"})
    assert pair.accepts('"🙂"')
    for pattern in (r"\ud800\u0041", r"\ud800"):
        with pytest.raises(ConstraintError, match="no value is valid"):
            compile_constraint("json_schema", {"type": "string", "pattern": pattern})
    with pytest.raises(ConstraintError, match="no text matches"):
        compile_constraint("regex", r"\ud83d\ude42")  # Python reads two halves, which no text holds


def test_case_is_ignored_in_all_alphabets_by_patterns_of_schemas() -> None:
    pattern = compile_constraint("json_schema", {"type": "string", "pattern": "^(?i:é[^ß])\\w$"})
    for text, good in (('"Éßa"', False), ('"Éxa"', True), ('"éxé"', False)):
        assert pattern.accepts(text) == good
    assert not compile_constraint("regex", "(?i)é").accepts("É")  # ASCII, as with re.ASCII


@pytest.mark.parametrize(
    ("value", "divisor", "fits"),
    [
        (1, 1e-30, True),
        (1e300, 3, False),
        (9 * 10**40, 9, True),
        (9 * 10**40 + 1, 9, False),
        (1.5, 0.1, True),
        (1e308, 5e-324, True),
        (0, 7, True),
    ],
)
def test_multiples_of_any_size_are_exact(value: float, divisor: float, fits: bool) -> None:
    schema = {"enum": [value, "other"], "multipleOf": divisor}
    constraint = compile_constraint("json_schema", schema)
    assert constraint.accepts(json.dumps(value)) == fits and constraint.accepts('"other"')
