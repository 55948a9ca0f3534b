"""What is left of an object's members beside the state accepts, masks, forces and ends exactly what a state for each set of them does."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar import compile as door
from grammar import order_terms
from grammar.compile import Options, compile_constraint
from grammar.constraint_errors import ConstraintError, TooLarge
from grammar.term_arena import Limits
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

PIECES = [
    *(b'"', b'":', b'":"', b'","', b'"}', b'"]', b"{}", b'{"', b'{"a', b'{"a":1,"', b'a":1', b'":1,"b', b'":1,"a":1}'),
    *(b"ab", b"abc", b'a"', b'b":true', b"true", b'true,"', b"null", b"10", b"1,", b"1}", b'1,"b":1', b'1,"zz":1', b"\\u"),
    *("é".encode(), b"\xa9b", b'"b":1,"abc":1', b'b","', b"}}", b'}},"', b'},"a', b'":{"', b'":{"a":1},"b"', b'_x"', b'x_"'),
]  # fmt: skip
COUNT = 256 + len(PIECES)
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *PIECES, b"</s>"], eos=[COUNT])
NAMES = ["a", "ab", "abc", "b", "é", 'q"', "b" * 9, "x_"]
SCALARS = st.sampled_from([
    {"type": "integer"}, {"type": "string"}, {"type": "boolean"}, {"const": 1}, {"enum": [1, 10, True]}, {}, False,
    {"type": ["number", "null"]}, {"type": "string", "pattern": "^[ab]+$"}, {"type": "string", "minLength": 2},
])  # fmt: skip


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    others = st.sampled_from([
        {}, {}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}, {"patternProperties": {"_": {"const": 1}}},
        {"patternProperties": {"^x": {"type": "integer"}, "_$": {"type": "boolean"}}, "additionalProperties": False},
        {"propertyNames": {"maxLength": 3}}, {"propertyNames": {"pattern": "^[abz]*$"}},
    ])  # fmt: skip
    return st.builds(
        lambda properties, required, other, least, most: {
            "type": "object", "properties": properties, "required": required, **other,
            **({"minProperties": least} if least else {}), **({"maxProperties": most} if most else {}),
        },
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
        st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
        others,
        st.sampled_from([0, 0, 1, 2]),
        st.sampled_from([0, 0, 1, 2, 4]),
    )  # fmt: skip


SCHEMAS = st.one_of(
    objects(SCALARS),
    objects(st.one_of(SCALARS, objects(SCALARS))),
    st.lists(objects(SCALARS), min_size=2, max_size=5).map(lambda o: {"anyOf": o}),
    st.lists(objects(st.one_of(SCALARS, objects(SCALARS))), min_size=2, max_size=3).map(
        lambda o: {"anyOf": o}
    ),
    st.lists(objects(SCALARS), min_size=2, max_size=3).map(lambda o: {"oneOf": o}),
    st.lists(objects(SCALARS), min_size=2, max_size=2).map(lambda o: {"allOf": o}),
    objects(SCALARS).map(lambda o: {"type": "array", "items": o, "minItems": 1}),
)


def machine(schema: Any, **options: Any) -> TokenPushdown:
    found = compile_constraint(
        "json_schema", schema, VOCABULARY, options=Options(any_order=True, **options)
    ).automaton
    assert isinstance(found, TokenPushdown)
    return found


def each_set_a_state(schema: Any) -> TokenPushdown:
    """The same constraint with a term, and so a state, for each set of members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_terms.AnyOrder, "beside", property(lambda self: False))
        found = machine(schema)
    found._put_sets_beside = lambda state, term: None  # type: ignore[method-assign]  # also of states built later
    return found


def tokens_of(row: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def weight(token: int) -> int:
    data = VOCABULARY.tokens[token]
    return 1 if len(data) == 1 and not data.isalnum() and data not in b'{}",:' else 12 * len(data)


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_as_with_a_state_for_each_set(schema: Any, rng: random.Random) -> None:
    try:
        one = machine(schema)
    except ConstraintError:
        return
    other = each_set_a_state(schema)
    for _ in range(4):
        here, there = one.start, other.start
        for _ in range(25):
            assert (one.allowed(here) == other.allowed(there)).all(), schema
            assert one.can_end(here) == other.can_end(there)
            assert one.forced(here) == other.forced(there), schema
            closing = one.closing_text(here)  # of several that are as short, each may say another
            assert len(closing) == len(other.closing_text(there))
            assert one.can_end(one.advance_bytes(here, closing))
            least = one.tokens_to_end(here)
            for budget in (least, least + 1, least + 4):
                near = one.allowed_within(here, budget)
                assert near.any() and not (near & ~one.allowed(here)).any()
                for token in tokens_of(near):
                    if token != COUNT:
                        assert one.tokens_to_end(one.step(here, token)) < budget
            tokens = [t for t in tokens_of(one.allowed(here)) if t != COUNT]
            if not tokens:
                break
            token = rng.choices(tokens, [weight(t) for t in tokens])[0]
            here, there = one.step(here, token), other.step(there, token)


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_masks_are_brute_force(schema: Any, rng: random.Random) -> None:
    try:
        one = machine(schema)
    except ConstraintError:
        return
    for _ in range(2):
        state = one.start
        for _ in range(12):
            allowed = set(tokens_of(one.allowed(state)))
            for token, data in enumerate(VOCABULARY.tokens):
                expected = one.can_end(state) if token == COUNT else one.advance_bytes(state, data) >= 0
                assert (token in allowed) == expected, (schema, data)
            tokens = sorted(allowed - {COUNT})
            if not tokens:
                break
            state = one.step(state, rng.choices(tokens, [weight(t) for t in tokens])[0])


def test_orders_share_their_states() -> None:
    names = [f"name{i}" for i in range(12)]
    schema = {"type": "object", "properties": {n: {"type": "integer"} for n in names}, "required": names[:6]}
    one, rng = machine(schema), random.Random(3)
    one.explore(100_000, 60.0)  # all there are, however long the machine takes
    before = one.states
    for _ in range(200):
        value = {n: rng.randint(-99, 99) for n in rng.sample(names, 12)}
        text = json.dumps(value, separators=(",", ":")).encode()
        state = one.advance_bytes(one.start, text)
        assert state >= 0 and one.must_end(state)
        twice = text[:-1] + b"," + text[1:]
        assert one.advance_bytes(one.start, twice) < 0
    assert one.states == before


def test_alternatives_share_their_states() -> None:
    """Objects of which one is followed: which of them are left, and what is left of each, is no part of the states."""
    names = [f"name{i}" for i in range(8)]
    whole, text, either = {"type": "integer"}, {"type": "string"}, {"type": ["integer", "string"]}
    of = ({n: {}, names[k]: whole, names[k + 1]: text} for k, n in enumerate(names[3:6]))
    schema = {
        "anyOf": [
            {"type": "object", "properties": dict.fromkeys(names, either) | own, "required": list(own)[1:]}
            for own in of
        ]
    }
    one, rng, endings = machine(schema), random.Random(3), set()
    one.explore(100_000, 60.0)
    before = one.states
    for _ in range(300):
        value = {n: rng.choice([rng.randint(-99, 99), "ab"]) for n in rng.sample(names, 8)}
        state = one.advance_bytes(one.start, json.dumps(value, separators=(",", ":")).encode())
        kinds = [type(value[n]) for n in names]
        fits = any(kinds[k : k + 2] == [int, str] for k in range(3))
        assert (state >= 0) == fits
        endings.add(fits)
    assert one.states == before and endings == {True, False}


def test_a_member_that_is_over_for_one_alternative_goes_on_for_another() -> None:
    number, ten = {"type": "number"}, {"enum": [1, 10, 1.5]}
    closed = {"type": "object", "additionalProperties": False}
    schema = {
        "anyOf": [
            {**closed, "properties": {"a": number, "b": {"type": "null"}}, "required": ["a", "b"]},
            {**closed, "properties": {"a": ten, "c": {"const": True}}, "required": ["a", "c"]},
        ]
    }
    one = machine(schema)
    for a, last in product(("1", "10", "1.5", "1.25", "2"), ('"b":null', '"c":true')):
        good = last == '"b":null' or a in ("1", "10", "1.5")
        for text in (f'{{"a":{a},{last}}}', f'{{{last},"a":{a}}}'):
            assert (one.advance_bytes(one.start, text.encode()) >= 0) == good, text
    assert one.forced(one.advance_bytes(one.start, b'{"a":2.5,')) == b'"b":null}'
    assert one.forced(one.advance_bytes(one.start, b'{"c":true,')) == b'"a":1'
    assert one.closing_text(one.advance_bytes(one.start, b'{"a":1')) in (b',"b":null}', b',"c":true}')


def test_many_alternatives_keep_a_state_for_each_set() -> None:
    """More than are followed beside the state."""
    schema = {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": i}, f"n{i}": {"type": "null"}},
                "required": ["kind"],
            }
            for i in range(40)
        ]
    }
    one = machine(schema)
    for i in (0, 7, 39):
        for text in (f'{{"n{i}":null,"kind":{i}}}', f'{{"kind":{i},"x":[1],"n{i}":null}}'):
            assert one.must_end(one.advance_bytes(one.start, text.encode()))
        assert one.advance_bytes(one.start, f'{{"kind":{i},"n{i}":1'.encode()) < 0


def test_more_members_than_a_word_has_bits() -> None:
    names = [f"{i:03d}" for i in range(200)]
    schema = {
        "type": "object",
        "properties": {n: {"type": "null"} for n in names},
        "required": names[::3],
        "additionalProperties": False,
    }
    one, rng = machine(schema), random.Random(5)
    order = rng.sample(names, len(names))
    text = json.dumps(dict.fromkeys(order), separators=(",", ":")).encode()
    state = one.advance_bytes(one.start, text[:-1])
    assert one.forced(state) == b"}"
    for missing in (names[0], names[63], names[129], names[198]):
        short = json.dumps({n: None for n in order if n != missing}, separators=(",", ":")).encode()
        state = one.advance_bytes(one.start, short[:-1])
        assert one.forced(state) == f',"{missing}":null}}'.encode()
        assert one.closing_text(state) == f',"{missing}":null}}'.encode()


def test_what_is_left_after_a_value_that_must_end_is_forced() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 10, "maximum": 99}, "b": {"type": "null"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    one = machine(schema)
    assert one.forced(one.advance_bytes(one.start, b'{"a":1')) == b""
    assert one.forced(one.advance_bytes(one.start, b'{"a":17')) == b',"b":null}'
    assert one.forced(one.advance_bytes(one.start, b'{"b":null,"a":17')) == b"}"


def test_more_sets_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{c}{i}" for c in "abc" for i in range(4)]
    schema = {"type": "object", "properties": {n: {"type": "null"} for n in names}}
    monkeypatch.setattr(door, "MACHINE_LIMITS", Limits(states=500, seconds=10.0))
    one, rng = machine(schema), random.Random(7)
    with pytest.raises(TooLarge, match="objects in any order were left with more than 512 different sets"):
        for _ in range(2000):
            text = json.dumps(dict.fromkeys(rng.sample(names, 12)), separators=(",", ":")).encode()
            assert one.must_end(one.advance_bytes(one.start, text))


def test_near_the_end_and_the_largest_number_only_what_must_come() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "abc": {"type": "null"}, "b" * 9: {"type": "null"}},
        "required": ["abc", "b" * 9],
        "maxProperties": 3,
    }
    one = machine(schema)
    for begun in (b'{"', b'{"a', b'{"zz":1,"', b'{"zz":1,"x":2,"', b'{"zz":1,"abc":null,"', b'{"a":null,"'):
        state = one.advance_bytes(one.start, begun)
        if state < 0:
            assert b'"x"' in begun  # then the two that must come have no room
            continue
        for token, data in enumerate(VOCABULARY.tokens[:COUNT]):
            assert (token in tokens_of(one.allowed(state))) == (one.advance_bytes(state, data) >= 0)
        least = one.tokens_to_end(state)
        for budget in range(least, least + 20):
            near = tokens_of(one.allowed_within(state, budget))
            assert near and all(one.tokens_to_end(one.step(state, t)) < budget for t in near)
    assert one.forced(one.advance_bytes(one.start, b'{"zz":1,"a')) == b'bc":null,"bbbbbbbbb":null}'
