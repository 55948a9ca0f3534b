"""JSON Schema: what is accepted is what a validator accepts; what cannot be enforced is refused by pointer."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.compile import CompiledConstraint, Options, compile_constraint
from grammar.constraint_errors import ConstraintError, SchemaError, TooLarge, Unsatisfiable
from grammar.token_fsm import TokenFsm
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

jsonschema = pytest.importorskip("jsonschema")

PIECES = [b'"', b'":', b'":"', b'","', b'"}', b"{}", b"[]", b'{"a', b"ab", b'a"', b"true", b"null", b"10", b"\\n", "é".encode(), b"\xa9b"]  # fmt: skip
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *PIECES, b"</s>"], eos=[256 + len(PIECES)])


def compiled(schema: Any, **options: Any) -> CompiledConstraint:
    return compile_constraint("json_schema", schema, VOCABULARY, options=Options(**options))


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def valid(schema: Any, value: Any) -> bool:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return bool(jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(value))


# any schema, any value

NAMES = ["a", "ab", "b", 'q"x', "é"]
_numbers = st.integers(-12, 12) | st.sampled_from([0.5, -1.25, 2.0, 10.75])
_scalars = st.none() | st.booleans() | _numbers | st.text('ab"\\é\n日', max_size=4)
VALUES = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=3, unique_by=lambda x: x[0]).map(
            lambda pairs: dict(sorted(pairs, key=lambda p: NAMES.index(p[0])))
        )
    ),
    max_leaves=6,
)


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=3, unique_by=lambda x: x[0]).map(
        lambda pairs: dict(sorted(pairs, key=lambda p: NAMES.index(p[0])))
    )
    types = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types | st.lists(types, min_size=1, max_size=3, unique=True),
            "enum": st.lists(_scalars, min_size=1, max_size=3),
            "const": _scalars,
            "minimum": st.integers(-6, 6),
            "maximum": st.sampled_from([-1, 0.5, 3, 7.25]),
            "exclusiveMinimum": st.integers(-6, 6),
            "multipleOf": st.sampled_from([1, 2, 3, 0.25]),
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 4),
            "pattern": st.sampled_from(["^a", "b$", "^[ab]*$", "a|é", "."]),
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 3),
            "properties": properties,
            "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(
                lambda names: sorted(names, key=NAMES.index)
            ),
            "additionalProperties": inner,
            "patternProperties": st.fixed_dictionaries({"^a": inner}),
            "propertyNames": st.just({"maxLength": 1}),
            "minProperties": st.integers(0, 1),
            "maxProperties": st.integers(0, 3),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "dependentRequired": st.just({"a": ["b"]}),
        },
    ).map(lambda d: dict(list(d.items())))


def _few(schema: dict[str, Any], keep: list[int]) -> dict[str, Any]:
    keys = list(schema)
    return {keys[k % len(keys)]: schema[keys[k % len(keys)]] for k in keep} if keys else schema


SCHEMAS = st.recursive(
    st.booleans() | st.just({}),
    lambda inner: st.tuples(_keywords(inner), st.lists(st.integers(0, 30), min_size=1, max_size=4)).map(
        lambda x: _few(*x)
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, st.lists(VALUES, max_size=12))
def test_never_more_than_a_validator(schema: Any, values: list[Any]) -> None:
    """Accepted texts are valid; valid values are accepted wherever the order of names cannot matter."""
    try:
        constraint = compiled(schema)
    except ConstraintError:
        return
    for value in values:
        accepted = constraint.accepts(text(value))
        if accepted:
            assert valid(schema, value), (schema, value)
        elif valid(schema, value):
            assert reordered(constraint, value), (schema, value)


def reordered(constraint: CompiledConstraint, value: Any) -> bool:
    """Is some order of the names of the value's objects accepted?"""
    return any(constraint.accepts(text(v)) for v in orders(value))


def orders(value: Any) -> list[Any]:
    from itertools import permutations, product

    if isinstance(value, dict):
        found = []
        for names in permutations(value):
            for parts in product(*(orders(value[n]) for n in names)):
                found.append(dict(zip(names, parts)))
        return found
    if isinstance(value, list):
        return [list(parts) for parts in product(*(orders(v) for v in value))]
    if isinstance(value, float) and value.is_integer():
        return [value, int(value)]
    return [value]


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_what_a_walk_writes_is_valid(schema: Any, rng: random.Random) -> None:
    """Tokens taken at random from the masks, then closed within a budget, are valid JSON for the schema."""
    try:
        constraint = compiled(schema)
    except ConstraintError:
        return
    machine = constraint.automaton
    assert isinstance(machine, TokenPushdown)
    for budget in (machine.min_tokens, machine.min_tokens + 3, machine.min_tokens + 12):
        out = walk(machine, budget, rng)
        assert valid(schema, json.loads(out)), (schema, out)


def walk(machine: TokenPushdown, budget: int, rng: random.Random) -> bytes:
    state, out = 0, b""
    for left in range(budget, 0, -1):
        row = machine.allowed_within(state, left)
        tokens = [t for t in range(len(VOCABULARY)) if row[t >> 5] >> (t & 31) & 1]
        assert tokens, (out, left)
        token = rng.choice(tokens)
        if token in VOCABULARY.eos:
            return out
        state = machine.step(state, token)
        out += VOCABULARY.tokens[token]
    assert machine.can_end(state), out
    return out


@settings(max_examples=120, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=3))
def test_masks_are_brute_force(schema: Any, values: list[Any]) -> None:
    """At every state of the walks: a token is in the mask exactly if its bytes can follow."""
    try:
        machine = compiled(schema).automaton
    except ConstraintError:
        return
    assert isinstance(machine, TokenPushdown)
    for value in values:
        state = 0
        for byte in text(value).encode():
            row = machine.allowed(state)
            for token, data in enumerate(VOCABULARY.tokens):
                allowed = bool(row[token >> 5] >> (token & 31) & 1)
                if token in VOCABULARY.eos:
                    assert allowed == machine.can_end(state)
                else:
                    assert allowed == (machine.advance_bytes(state, data) >= 0), (schema, value, data)
            state = machine.advance_bytes(state, bytes([byte]))
            if state < 0:
                break


@settings(max_examples=100, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=2))
def test_a_budget_is_kept_after_every_token(schema: Any, values: list[Any]) -> None:
    """What is allowed within n tokens leaves a way to the end within n - 1; all that is left out may not."""
    try:
        machine = compiled(schema).automaton
    except ConstraintError:
        return
    assert isinstance(machine, TokenPushdown)
    for value in values:
        state = 0
        for byte in text(value).encode():
            least = machine.tokens_to_end(state)
            for budget in (least, least + 1, least + 4, least + 9, least + 30):
                row = machine.allowed_within(state, budget)
                for token in [t for t in range(256 + len(PIECES)) if row[t >> 5] >> (t & 31) & 1]:
                    assert machine.tokens_to_end(machine.step(state, token)) <= budget - 1, (
                        schema,
                        value,
                        token,
                    )
            state = machine.advance_bytes(state, bytes([byte]))
            if state < 0:
                break


# examples that each show one rule

EXACT: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ["a", "abc"], ["", "abcd", "A", 1]),
    ({"type": "string", "minLength": 2, "maxLength": 2}, ["日é", '"\\', "\n\t"], ["a", "abc"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "2024-13-01"]),
    ({"type": "integer", "minimum": -3, "maximum": 12}, [-3, 0, 12], [-4, 13, 1.5]),
    ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.01}, [0.01, 2.5, 3], [0, -1, 0.001]),
    ({"enum": [1, "a", None, {"x": [1]}]}, [1, "a", None, {"x": [1]}], [2, "b", {"x": []}]),
    ({"type": "array", "prefixItems": [{"type": "string"}], "items": False}, [[], ["a"]], [[1], ["a", 1]]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]], [[1], [1] * 4]),
    ({"type": "array", "contains": {"const": 1}}, [[1], [0, 1, 2]], [[], [0]]),
    ({"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}}, [[], [3, 1]], [[1, 1], [4]]),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 2}], [{}, {"a": 1, "b": 2, "c": 3}]),
    ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}, [{"x1": 1}, {}], [{"x1": "a"}, {"y": 1}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]$"}}, [{"a": 1}], [{"A": 1}, {"ab": 1}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}, [{"a": 1, "b": "x"}, {"aa": "x"}], [{"a": "x"}, {"b": 1}]),
    ({"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}}, [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, [1.5], [1, "a"]),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}, "type": "object"}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    ({"if": {"properties": {"k": {"const": 1}}, "required": ["k"]}, "then": {"required": ["v"]}, "type": "object", "properties": {"k": {}, "v": {}}}, [{"k": 2}, {"k": 1, "v": 0}], [{"k": 1}]),
    ({"not": {"type": "string"}}, [1, None, []], ["a"]),
    ({"type": "string", "not": {"enum": ["a", "b"]}}, ["c", "ab"], ["a", "b"]),
    ({"allOf": [{"type": "object", "properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}]}, [{"a": 1}], [{"a": 0}, {"a": 1.5}, {}]),
    ({"$defs": {"n": {"type": "object", "properties": {"v": {"type": "integer"}, "n": {"$ref": "#/$defs/n"}}, "required": ["v"], "additionalProperties": False}}, "$ref": "#/$defs/n"}, [{"v": 1}, {"v": 1, "n": {"v": 2, "n": {"v": 3}}}], [{"n": {}}, {"v": 1, "n": {}}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), EXACT, ids=[text(s)[:60] for s, _, _ in EXACT])
def test_exact(schema: Any, good: list[Any], bad: list[Any]) -> None:
    constraint = compiled(schema)
    for value in good:
        assert valid(schema, value) and constraint.accepts(text(value)), value
    for value in bad:
        assert not valid(schema, value) and not constraint.accepts(text(value)), value
    assert valid(schema, json.loads(constraint.witness))


REFUSED: list[tuple[Any, str, str]] = [
    ({"properties": {"a": {"format": "phone"}}}, "#/properties/a/format", "the format 'phone' is not known"),
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems", "uniqueItems is enforced only if items is an enum"),
    ({"pattern": "(?!a)b"}, "#/pattern", "negative lookahead (?!...) are not supported"),
    ({"$ref": "http://x.org/y.json"}, "#/$ref", "is outside of this document"),
    ({"$ref": "#/$defs/gone"}, "#/$ref", "names nothing in this document"),
    ({"type": "text"}, "#/type", "'text' is not a type"),
    ({"$dynamicRef": "#a"}, "#/$dynamicRef", "$dynamicRef is not supported"),
    ({"anyOf": [{}], "unevaluatedProperties": False}, "#/unevaluatedProperties", "use additionalProperties"),
    ({"$ref": "#"}, "#", "a reference leads back here without taking any part of the value"),
    ({"allOf": [{"anyOf": [{"$ref": "#"}]}]}, "#", "a reference leads back here"),
    ({"type": "array", "contains": {}, "minContains": 2}, "#/minContains", "minContains other than 1"),
    ({"items": {"oneOf": [{"additionalProperties": False}, {"additionalProperties": {"type": "string"}}]}}, "#/items/oneOf", "branches 0 and 1 can both match"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "pointer", "message"), REFUSED, ids=[p for _, p, _ in REFUSED])
def test_refused_with_the_pointer(schema: Any, pointer: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        compiled(schema)
    assert caught.value.pointer == pointer
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text("a#/$(", max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "required", "items", "prefixItems", "enum", "const", "pattern", "format", "minimum", "maxLength", "minItems", "not", "if", "then", "allOf", "anyOf", "oneOf", "additionalProperties", "patternProperties", "propertyNames", "dependencies", "$ref", "uniqueItems", "contains", "multipleOf", "minProperties", "exclusiveMinimum", "$defs", "$id"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(JSON)
def test_any_json_compiles_or_is_refused(schema: Any) -> None:
    """A client's nonsense is the client's error, whatever it is."""
    try:
        compiled(schema).report()
    except ConstraintError as error:
        assert str(error)


@pytest.mark.parametrize("nonsense", [
    {"oneOf": [None, None]}, {"minItems": None, "enum": [[]]}, {"if": {"enum": None}, "then": {}}, {"maxLength": 1e300},
    {"type": [[]]}, {"properties": {"a": 1}}, {"required": [1]}, {"$ref": 5}, {"items": "x"}, None, 3, [], {"minLength": 1 << 40},
    {"type": "array", "minItems": 1 << 20, "items": {"type": "array", "minItems": 1 << 20}},
])  # fmt: skip
def test_nonsense_is_refused_or_means_nothing(nonsense: Any) -> None:
    if nonsense == {"maxLength": 1e300}:
        assert compiled(nonsense).accepts('"a"')  # no text is that long
        return
    with pytest.raises(ConstraintError):
        compiled(nonsense)


def test_a_very_long_name_is_answered() -> None:
    schema = {"type": "object", "properties": {"x" * 50_000: {"type": "null"}}}
    assert compiled(schema).accepts(json.dumps({"x" * 50_000: None, "x" * 49_999: 1}, separators=(",", ":")))
    assert not compiled(schema).accepts(json.dumps({"x" * 50_000: 1}, separators=(",", ":")))
    with pytest.raises(TooLarge, match="a name that is too long"):
        compiled({"type": "object", "properties": {"é" * 50_000: {}}})


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "pattern": "^a$", "minLength": 2},
        {"enum": [1, 2], "type": "string"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "minItems": 1, "items": False},
        {"not": {}},
    ],
)
def test_without_a_valid_value_is_an_error_at_compile_time(schema: Any) -> None:
    with pytest.raises(Unsatisfiable, match="no value is valid for this schema"):
        compiled(schema)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.lists(VALUES, max_size=8))
def test_in_any_order_exactly_the_valid_values(schema: Any, values: list[Any]) -> None:
    try:
        constraint = compiled(schema, any_order=True)
    except ConstraintError:
        return
    for value in values:
        for one in orders(value)[:6]:
            if not any_float_is_whole(one):
                assert constraint.accepts(text(one)) == valid(schema, one), (schema, one)


def any_float_is_whole(value: Any) -> bool:
    """Is there a number that only another spelling of the same value could pass for an integer?"""
    if isinstance(value, dict | list):
        return any(map(any_float_is_whole, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


MANY = [a + b for a in ("", "a", "ab", "b") for b in ("c", "ca", "d", "da", "é", "")]


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from(MANY), max_size=3),
    st.integers(0, 4),
    st.integers(-1, 6),
    st.booleans(),
    st.booleans(),
    st.lists(st.lists(st.sampled_from([*MANY, "z"]), max_size=6, unique=True), max_size=8),
)
def test_many_names_that_begin_each_other(
    required: set[str], least: int, most: int, closed: bool, any_order: bool, values: list[list[str]]
) -> None:
    schema = {
        "type": "object",
        "properties": {n: {"type": ["boolean", "null"]} for n in MANY},
        "required": sorted(required),
        "minProperties": least if closed else 0,
    }
    schema |= {"additionalProperties": False} if closed else {}
    schema |= {"maxProperties": most} if most >= 0 else {}
    try:
        constraint = compiled(schema, any_order=any_order)
    except Unsatisfiable:
        assert 0 <= most < max(len(required), least if closed else 0)
        return
    for names in values:
        ordered = [n for n in [*MANY, "z"] if n in names]
        value = dict.fromkeys(names if any_order else ordered, True)
        assert constraint.accepts(text(value)) == valid(schema, value), value


def test_in_any_order_all_members_come_once() -> None:
    schema = {"type": "object", "properties": {k: {"type": "integer"} for k in "abcdefgh"}, "required": ["b", "g"], "additionalProperties": False}  # fmt: skip
    constraint = compiled(schema, any_order=True)
    assert constraint.accepts('{"g":1,"a":2,"b":3}') and constraint.accepts('{"b":3,"g":1}')
    assert not constraint.accepts('{"g":1,"g":2,"b":3}') and not constraint.accepts('{"g":1,"a":2}')
    assert constraint.report().min_tokens == 11 and constraint.witness == '{"b":0,"g":0}'
    bounded = compiled({**schema, "maxProperties": 2}, any_order=True)
    assert bounded.accepts('{"g":1,"b":3}') and not bounded.begins('{"a":1,')


def test_unknown_formats_are_annotations_only_if_asked() -> None:
    assert compiled({"type": "string", "format": "phone"}, ignore_unknown_formats=True).accepts('"x"')


def test_one_way_of_writing() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
        "required": ["a"],
    }
    compact, spaced = compiled(schema), compiled(schema, whitespace="spaced")
    value = {"a": [1, 2]}
    assert compact.accepts(text(value)) and not compact.accepts(json.dumps(value))
    assert spaced.accepts(json.dumps(value)) and not spaced.accepts(text(value))


def test_strings_may_use_every_escape_but_no_half_of_a_pair() -> None:
    constraint = compiled({"type": "string", "maxLength": 2})
    assert constraint.accepts(r'"\ud83d\ude42\/"') and constraint.accepts('"🙂é"')
    assert not constraint.accepts(r'"\ud83d"') and not constraint.accepts(r'"\ude42"')
    assert not constraint.accepts('"\n"') and not constraint.accepts(r'"\x"')


def test_recursion_and_depth_are_bounded() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(20_000):
        deep = {"items": deep}
    with pytest.raises(TooLarge, match="nested deeper than 200"):
        compiled(deep)
    with pytest.raises(TooLarge, match="nested deeper than 200"):
        compile_constraint("json_schema", "[" * 100_000, VOCABULARY)
    with pytest.raises(SchemaError, match="the schema is not JSON"):
        compile_constraint("json_schema", "{", VOCABULARY)


def test_nesting_of_the_text_is_not_bounded() -> None:
    constraint = compiled({})
    assert constraint.accepts("[" * 3000 + "]" * 3000)
    assert not constraint.accepts("[" * 3000 + "]" * 2999)


def test_large_enums_and_lengths_stay_small() -> None:
    constraint = compiled({"enum": [f"word number {i}" for i in range(20_000)]})
    assert constraint.accepts('"word number 19999"') and not constraint.accepts('"word number 20000"')
    long = compiled({"type": "string", "maxLength": 100_000})
    assert long.report().states < 10
    assert long.accepts(text("x" * 100_000)) and not long.accepts(text("x" * 100_001))


def test_forced_text_is_names_and_punctuation() -> None:
    constraint = compiled({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False})  # fmt: skip
    machine = constraint.automaton
    assert machine is not None
    assert machine.forced(0) == b'{"name":"'
    assert machine.forced(machine.advance_bytes(0, b'{"name":"x')) == b""
    assert machine.forced(machine.advance_bytes(0, b'{"name":"x"')) == b"}"


def test_special_tokens_never_stand_in_a_string() -> None:
    vocabulary = Vocabulary.of(
        [*(bytes([b]) for b in range(256)), b"<tool>", b"</s>"], eos=[257], special=[256]
    )
    machine = compile_constraint("json_schema", {"type": "string"}, vocabulary).automaton
    assert machine is not None
    row = machine.allowed(machine.step(0, ord('"')))
    assert not row[256 >> 5] >> (256 & 31) & 1 and machine.step(machine.step(0, ord('"')), 256) == -1


def test_closed_objects_have_declared_names_only_and_force_more() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
        "required": ["a", "b"],
    }
    open_, closed = compiled(schema), compiled(schema, objects="closed")
    assert open_.accepts(text({"a": 1, "b": None, "c": 2})) and not closed.accepts(
        text({"a": 1, "b": None, "c": 2})
    )
    assert closed.accepts(text({"a": 1, "b": None})) and closed.digest != open_.digest
    assert (open_.report().forced, closed.report().forced) == ('{"a":', '{"a":')
    assert open_.automaton is not None and closed.automaton is not None
    after = b'{"a":1,'
    assert closed.automaton.forced(closed.automaton.advance_bytes(0, after)) == b'"b":null}'
    assert closed.report().forced_share > open_.report().forced_share


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^z": {}}},
        {"allOf": [{"properties": {"a": {}}}, {"additionalProperties": {}}], "type": "object"},
    ],
)
def test_objects_that_speak_of_other_names_or_of_none_stay_open(schema: Any) -> None:
    constraint = compiled(schema, objects="closed")
    assert constraint.accepts(text({"a": 1, "z": 2}))


def test_closed_objects_close_over_the_names_of_all_parts() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}
    constraint = compiled(schema, objects="closed")
    assert constraint.accepts(text({"a": 1, "b": 2})) and not constraint.accepts(text({"a": 1, "c": 2}))


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        {"type": "array", "items": {"enum": ["red", 3, None]}, "maxItems": 3},
        {
            "type": "object",
            "properties": {"x": {"type": "array", "items": {"type": "boolean"}}},
            "additionalProperties": False,
        },
        {"type": "string", "maxLength": 3},
    ],
)
def test_a_small_schema_may_be_a_table_with_the_same_masks(schema: Any) -> None:
    machine, table = compiled(schema).automaton, compiled(schema, tables=True).automaton
    assert isinstance(machine, TokenPushdown) and isinstance(table, TokenFsm)
    rng = random.Random(3)
    for _ in range(20):
        one = other = 0
        for _ in range(30):
            row = table.allowed(other)
            assert (machine.allowed(one) == row).all()
            choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
            token = rng.choice(choices)
            if token in VOCABULARY.eos:
                break
            one, other = machine.step(one, token), table.step(other, token)


def test_a_schema_that_holds_itself_is_no_table() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert compiled(tree, tables=True).report().engine == "machine"
    assert compiled({"type": "string", "maxLength": 5000}, tables=True).report().engine == "machine"


def test_strict_objects_have_all_declared_names_in_order_and_force_the_most() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"properties": {"c": {"type": "null"}, "d": {"enum": [1]}}},
        },
        "required": ["a"],
    }
    strict = compiled(schema, objects="strict")
    assert strict.accepts('{"a":1,"b":{"c":null,"d":1}}')
    for other in (
        '{"a":1}',
        '{"a":1,"b":{"c":null}}',
        '{"b":{"c":null,"d":1},"a":1}',
        '{"a":1,"b":{"c":null,"d":1},"e":2}',
    ):
        assert not strict.accepts(other)
    assert strict.automaton is not None
    after = strict.automaton.advance_bytes(0, b'{"a":1,')
    assert strict.automaton.forced(after) == b'"b":'
    assert strict.report().forced_share > compiled(schema, objects="closed").report().forced_share


def test_a_property_that_may_have_no_value_does_not_come_in_strict_objects() -> None:
    strict = compiled({"type": "object", "properties": {"a": False, "b": {"type": "null"}}}, objects="strict")
    assert strict.accepts('{"b":null}') and not strict.accepts("{}")


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, "#"),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, "#/maxProperties"),
        ({"type": "object", "properties": {"a": {"minimum": 2, "maximum": 1, "type": "integer"}}}, "#/properties/a"),
        (
            {"type": "object", "properties": {"x": {"properties": {"y": {"type": "string", "enum": [1]}}, "type": "object"}}},
            "#/properties/x/properties/y",
        ),
    ],
)  # fmt: skip
def test_strict_objects_that_leave_no_value_are_refused_with_the_pointer(schema: Any, pointer: str) -> None:
    assert compiled(schema, objects="closed").accepts("{}")
    with pytest.raises(Unsatisfiable, match="as strict objects have it") as caught:
        compiled(schema, objects="strict")
    assert caught.value.where == pointer


def test_what_no_object_could_fulfil_is_not_blamed_on_strictness() -> None:
    with pytest.raises(Unsatisfiable, match="no value is valid"):
        compiled({"type": "object", "properties": {"a": False}, "required": ["a"]}, objects="strict")


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, VALUES)
def test_strict_objects_are_some_of_the_closed_ones_and_these_of_the_open_ones(
    schema: Any, value: Any
) -> None:
    verdicts = []
    for objects in ("strict", "closed", "open"):
        try:
            verdicts.append(compiled(schema, objects=objects).accepts(text(value)))
        except Unsatisfiable:
            verdicts.append(False)
        except ConstraintError:
            return
    assert verdicts == sorted(verdicts)


def test_a_report_names_what_no_text_has() -> None:
    never = {"type": "integer", "minimum": 2, "maximum": 1}
    schema = {
        "type": "object",
        "properties": {
            "a/b": never,
            "c": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/never"}]},
            "d": {"enum": ["x", 3], "type": "string"},
        },
        "$defs": {"never": never},
    }
    assert compiled(schema).report().unreachable == (
        "#/$defs/never",
        "#/properties/a~1b",
        "#/properties/d/enum/1",
    )
    assert compiled({"anyOf": [{"type": "null"}, {"type": "string"}]}).report().unreachable == ()
