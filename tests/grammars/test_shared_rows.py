"""A row that was made on one stack serves another only where no token looks at the stack."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.automaton import TokenAutomaton
from grammar.compile import Options, compile_constraint
from grammar.vocabulary import Vocabulary
from runtime.constrain.matcher import Matcher

ENDS = ["]", "}", ",", '"', "1", "a", ":", "[", "{", "t", "null", "true"]
PAIRS = sorted(
    {a + b for a, b in product(ENDS, ENDS)} | {a + b + c for a, b, c in product(ENDS[:6], repeat=3)}
)
VOCABULARY = Vocabulary.of(
    [*(bytes([b]) for b in range(256)), *(p.encode() for p in PAIRS), b"</s>"], eos=[256 + len(PAIRS)]
)
TREE: dict[str, Any] = {
    "$defs": {
        "leaf": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 4}, {"type": "boolean"}]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3},
        "node": {
            "type": "object",
            "properties": {
                "a": {"$ref": "#/$defs/list"},
                "at": {"$ref": "#/$defs/leaf"},
                "n": {"$ref": "#/$defs/node"},
                "t": {"type": "array", "items": {"$ref": "#/$defs/list"}},
            },
            "additionalProperties": False,
        },
    },
    "$ref": "#/$defs/node",
}
LEAF = st.one_of(st.integers(-20, 20), st.text("a1t", max_size=4), st.booleans())
LIST = st.lists(LEAF, max_size=3)


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {}, optional={"a": LIST, "at": LEAF, "n": inner, "t": st.lists(LIST, max_size=2)}
    )


NODE = st.recursive(nodes(st.just({})), nodes, max_leaves=6)


@cache
def machine() -> TokenAutomaton:
    """One for all examples: what they leave behind is what is tested."""
    found = compile_constraint("json_schema", TREE, VOCABULARY).automaton
    assert found is not None
    return found


def texts(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


@settings(max_examples=40, deadline=None)
@given(NODE, st.data())
def test_masks_are_brute_force_on_every_stack(value: Any, data: st.DataObject) -> None:
    text, automaton = texts(value), machine()
    assert automaton.can_end(automaton.advance_bytes(0, text))
    for cut in data.draw(st.lists(st.integers(0, len(text)), max_size=6)):
        state = automaton.advance_bytes(0, text[:cut])
        found = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little").astype(bool)
        for token, spelled in enumerate(VOCABULARY.tokens):
            if token in VOCABULARY.eos:
                assert found[token] == automaton.can_end(state)
            else:
                assert found[token] == (automaton.advance_bytes(state, spelled) >= 0), (text[:cut], spelled)


NAMES = ["a", "at", "ata", "t1", "null", "é", 'a"', "1", ""]
SCALAR: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"type": "null"}, {"type": "string"}, {"const": 1}, {}]
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), SCALAR, min_size=1, max_size=4), SCALAR, st.data())
def test_masks_inside_of_names_are_brute_force(
    properties: dict[str, Any], other: dict[str, Any], data: st.DataObject
) -> None:
    """Wherever a name may still be a declared one or any other."""
    schema = {"type": "object", "properties": properties, "additionalProperties": other}
    options = Options(any_order=data.draw(st.booleans()))
    automaton = compile_constraint("json_schema", schema, VOCABULARY, options=options).automaton
    assert automaton is not None
    begun = data.draw(st.sampled_from([*NAMES, "at1", "x", "nul"]))
    text = b'{"' + json.dumps(begun, ensure_ascii=False)[1:-1].encode()
    state = 0
    for byte in text:
        state = automaton.advance_bytes(state, bytes([byte]))
        found = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little").astype(bool)
        for token, spelled in enumerate(VOCABULARY.tokens[:-1]):
            assert found[token] == (automaton.advance_bytes(state, spelled) >= 0), (text, spelled)


@settings(max_examples=30, deadline=None)
@given(NODE, st.integers(0, 8), st.randoms(use_true_random=False))
def test_a_budget_holds_on_every_stack(value: Any, spare: int, rng: Any) -> None:
    automaton = machine()
    head = texts(value)[: rng.randrange(len(texts(value)) + 1)]
    state = automaton.advance_bytes(0, head)
    place = Matcher(automaton, None, state, used=1)
    place.max_tokens = 1 + automaton.tokens_to_end(state) + spare
    while not place.can_end or (place.left and rng.random() < 0.7):
        choices = np.flatnonzero(place.mask_bool())
        token = int(rng.choice(choices.tolist()))
        place.advance(token)
        if place.ended:
            break
    assert place.can_end and place.left is not None and place.left >= 0
