"""Masks inside of strings with patterns, and along names that are declared or not, against trying every token."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar import pattern_rows
from grammar.automaton import TokenAutomaton
from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from runtime.constrain.matcher import Matcher

PARTS = ["a", "b", "-", "7", "é", "日", " ", "\\n", '\\"', "\\\\", '"', '":', "\n"]
PIECES = sorted(
    {a + b for a, b in product(PARTS, PARTS)}
    | {a + b + c for a, b, c in product(PARTS, PARTS[:6], PARTS[-3:])}
)
TOKENS = [
    *(bytes([b]) for b in range(256)),
    *(p.encode() for p in PIECES),
    "日".encode()[1:] + b"a",
    b'a"}',
    b'",',
    b"</s>",
]
VOCABULARY = Vocabulary.of(TOKENS, eos=[len(TOKENS) - 1])
STRINGS: dict[str, dict[str, Any]] = {
    "letters": {"pattern": "^[a-z-]+$"},
    "beginning": {"pattern": "^a"},
    "any but": {"pattern": "^[^b7]*$"},
    "escapes": {"pattern": '^[a\n"日]{2,}$'},
    "counted": {"pattern": "^[^-]*$", "minLength": 2, "maxLength": 5},
    "least": {"pattern": "^(ab|é7?)*$", "minLength": 4},
    "most": {"pattern": "^(a|日日)+-$", "maxLength": 6},
    "bounded": {"pattern": "^[a-z]{1,4}(-[a-z]{1,3})?$", "minLength": 3},
}  # fmt: skip
NAMES: dict[str, dict[str, Any]] = {
    "one": {"ab-7": {"type": "null"}},
    "alike": {
        "ab": {"type": "null"},
        "aba-": {"type": "null"},
        "abab": {"type": "null"},
        "b": {"type": "null"},
    },
    "not plain": {"aé日": {"type": "null"}, 'a"b': {"type": "null"}},
    "nested": {"aab": {"properties": {"bba": {"type": "null"}}}},
}


@cache
def string(name: str) -> TokenAutomaton:
    found = compile_constraint("json_schema", {"type": "string", **STRINGS[name]}, VOCABULARY).automaton
    assert found is not None
    return found


@cache
def names(name: str, required: bool) -> TokenAutomaton:
    schema = {"type": "object", "properties": NAMES[name], "required": list(NAMES[name]) if required else []}
    found = compile_constraint("json_schema", schema, VOCABULARY).automaton
    assert found is not None
    return found


def check(automaton: TokenAutomaton, state: int) -> None:
    mask = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little").astype(bool)
    for token, spelled in enumerate(VOCABULARY.tokens):
        expected = bool(spelled) and automaton.advance_bytes(state, spelled) >= 0
        if token in VOCABULARY.eos:
            expected = automaton.can_end(state)
        assert mask[token] == expected, (state, spelled)


def walk(automaton: TokenAutomaton, choose: Any, steps: int) -> None:
    """Masks along a way that takes any allowed token."""
    state = 0
    for _ in range(steps):
        check(automaton, state)
        mask = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little")
        after = [t for t in np.flatnonzero(mask).tolist() if t not in VOCABULARY.eos]
        if not after:
            return
        state = automaton.step(state, choose(after))
        assert state >= 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(STRINGS)), st.randoms(use_true_random=False))
def test_masks_of_patterns_are_brute_force(name: str, rng: Any) -> None:
    walk(string(name), rng.choice, 6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(NAMES)), st.booleans(), st.randoms(use_true_random=False))
def test_masks_of_names_are_brute_force(name: str, required: bool, rng: Any) -> None:
    walk(names(name, required), rng.choice, 7)


@pytest.mark.parametrize("text", ['{"ab-7', '{"ab-', '{"aab":{"bba', '{"aab":{"bb', '{"aab":{"bx', '{"ab'])
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_masks_along_a_name_are_brute_force(name: str, required: bool, text: str) -> None:
    state = names(name, required).advance_bytes(0, text.encode())
    if state >= 0:
        check(names(name, required), state)


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.sampled_from(sorted(STRINGS)), st.sampled_from(sorted(NAMES))), st.integers(0, 5), st.randoms(use_true_random=False))  # fmt: skip
def test_every_budget_is_kept(name: str, spare: int, rng: Any) -> None:
    automaton = string(name) if name in STRINGS else names(name, True)
    place = Matcher(automaton, automaton.min_tokens + spare)
    while not place.must_end and place.left:
        tokens = np.flatnonzero(place.mask_bool()).tolist()
        place.advance(rng.choice(tokens))
        if place.ended:
            break
    assert place.can_end


def test_what_is_kept_of_patterns_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_rows, "_TABLE_BYTES", 40_000)
    vocabulary = Vocabulary.of(TOKENS, eos=[len(TOKENS) - 1])
    for k in range(12):
        schema = {"type": "string", "pattern": f"^[a-z]{{2,{k + 3}}}[^b]*$"}
        found = compile_constraint("json_schema", schema, vocabulary).automaton
        assert found is not None and found.allowed(found.advance_bytes(0, b'"a')).any()
    assert 0 < vocabulary.patterns.nbytes <= 40_000
