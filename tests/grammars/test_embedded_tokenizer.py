"""Masks over the embedded model's vocabulary: every token, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from runtime.constrain.jump import JumpForward

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


def test_forced_tokens_are_canonical(vocabulary: Vocabulary) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FILES[0]))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    _, schema, text = CASES[-1]
    automaton = compile_constraint("json_schema", schema, vocabulary).automaton
    assert automaton is not None
    canonical, jump = encode(text), JumpForward(automaton, encode)
    state, at, forced = 0, 0, 0
    while at < len(canonical):
        for token in jump.tokens(state, canonical[:at]):
            assert token == canonical[at]
            state, at, forced = automaton.step(state, token), at + 1, forced + 1
        if at < len(canonical):
            state, at = automaton.step(state, canonical[at]), at + 1
    assert automaton.can_end(state)
