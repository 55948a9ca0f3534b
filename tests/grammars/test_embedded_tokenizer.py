"""Masks over the embedded model's vocabulary: every token, byte by byte."""

from __future__ import annotations

import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.automaton import TokenAutomaton
from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from runtime.constrain.jump import Cuts, JumpForward
from runtime.tokenizer.tokenizer import Tokenizer

FILES = sorted((Path(__file__).parents[2] / "stdlib" / "tiny").rglob("tokenizer.json"))
pytestmark = pytest.mark.skipif(not FILES, reason="the embedded model has no weights here")

CASES: list[tuple[str, Any, str]] = [
    ("regex", r"((25[0-5]|2[0-4]\d|[01]?\d?\d)\.){3}(25[0-5]|2[0-4]\d|[01]?\d?\d)", "192.168.10.254"),
    ("regex", r"[\w ]{1,16}(, [a-z]+)*", "Paris, lyon"),
    ("choices", ["Paris", "Par is", "Lyon", "日本"], "Par is"),
    ("json_schema", {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}}, "required": ["name", "age"]}, '{"name":"Zoë","age":42,"x":[1]}'),
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    data = json.loads(FILES[0].read_text("utf-8"))
    special = [t["id"] for t in data["added_tokens"] if t.get("special")]
    return Vocabulary.from_tokenizer_json(data, eos=special[:1])


@pytest.mark.parametrize(("kind", "source", "text"), CASES, ids=[k for k, _, _ in CASES])
def test_masks_are_brute_force(vocabulary: Vocabulary, kind: str, source: Any, text: str) -> None:
    automaton = compile_constraint(kind, source, vocabulary).automaton  # type: ignore[arg-type]
    assert automaton is not None
    state = 0
    for byte in text.encode():
        mask = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little").astype(bool)
        for token, data in enumerate(vocabulary.tokens):
            if token in vocabulary.eos:
                assert mask[token] == automaton.can_end(state)
            else:
                assert mask[token] == (bool(data) and automaton.advance_bytes(state, data) >= 0), data
        state = automaton.advance_bytes(state, bytes([byte]))
        assert state >= 0
    assert automaton.can_end(state)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(FILES[0].parent)


@pytest.mark.parametrize("known", [False, True], ids=["whole texts", "pieces"])
def test_forced_tokens_are_canonical(vocabulary: Vocabulary, tokenizer: Tokenizer, known: bool) -> None:
    _, schema, text = CASES[-1]
    automaton = compile_constraint("json_schema", schema, vocabulary).automaton
    assert automaton is not None
    canonical = tokenizer.encode(text, first=False)
    jump = JumpForward(automaton, cuts(tokenizer, known))
    state, at, forced = 0, 0, 0
    while at < len(canonical):
        for token in jump.tokens(state, canonical[:at]):
            assert token == canonical[at]
            state, at, forced = automaton.step(state, token), at + 1, forced + 1
        if at < len(canonical):
            state, at = automaton.step(state, canonical[at]), at + 1
    assert automaton.can_end(state) and forced >= 4


def cuts(tokenizer: Tokenizer, known: bool) -> Cuts:
    return Cuts(partial(tokenizer.encode, first=False), tokenizer.pieces if known else None)


LETTER = {"type": "object", "additionalProperties": False, "required": ["to", "text"], "properties": {"to": {"type": "string", "maxLength": 9}, "text": {"type": "string"}, "signed": {"type": "boolean"}}}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_pieces_change_no_forced_token(rng: random.Random) -> None:
    """What is remembered by the last piece is what the whole context gives, on and off the tokenizer's own path."""
    vocabulary, tokenizer, automaton, jump = _letters()
    state, taken = 0, list[int]()
    fresh = JumpForward(automaton, cuts(tokenizer, known=False))
    while len(taken) < 40 and not automaton.must_end(state):
        forced = jump.tokens(state, taken)
        assert forced == fresh.tokens(state, taken), (taken, vocabulary.tokens[taken[-1]] if taken else "")
        mask = np.unpackbits(automaton.allowed(state).view(np.uint8), bitorder="little")
        words = forced or (rng.choice(np.flatnonzero(mask).tolist()),)
        if words[0] in vocabulary.eos:
            break
        for token in words:
            state = automaton.step(state, token)
        taken += words


@cache
def _letters() -> tuple[Vocabulary, Tokenizer, TokenAutomaton, JumpForward]:
    tokenizer = Tokenizer(FILES[0].parent)
    vocabulary = Vocabulary.from_tokenizer_json(FILES[0], tokenizer.ends)
    automaton = compile_constraint("json_schema", LETTER, vocabulary).automaton
    assert automaton is not None
    return vocabulary, tokenizer, automaton, JumpForward(automaton, cuts(tokenizer, known=True))
