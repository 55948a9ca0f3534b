"""Free text with constrained parts: against a reader of texts, token by token, and with the errors of its document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.compile import CompiledConstraint, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.vocabulary import Vocabulary

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = {
    "type": "structural_tag",
    "triggers": ["<function="],
    "structures": [
        {"begin": "<function=get>", "schema": CITY, "end": "</function>"},
        {
            "begin": "<function=add>",
            "schema": {"type": "array", "items": {"type": "integer"}},
            "end": "</function>",
        },
    ],
}


def tag(document: Any, vocabulary: Vocabulary | None = None) -> CompiledConstraint:
    return compile_constraint("structural_tag", json.dumps(document), vocabulary)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a <func b <<function",
        'Well: <function=get>{"city":"Rome"}</function> and <function=add>[1,-2]</function>.',
        "<<function=add>[]</function><function=add>[0]</function>",
        '日本語 <function=get>{"city":"Oslo"}</function>',
    ],
)
def test_texts_with_and_without_parts(text: str) -> None:
    assert tag(TOOLS).accepts(text)


@pytest.mark.parametrize(
    ("text", "alive"),
    [
        ("<function=", True),
        ("<function=foo>", False),
        ('<function=get>{"city":"Paris"}', False),
        ('<function=get>{"city":"Rome"}', True),
        ('<function=get>{"city":"Rome"}</function', True),
        ('<function=get>{"city":"Rome"} </function>', False),
        ("<function=add>[1.5]", False),
    ],
)
def test_parts_that_are_wrong_or_not_ended(text: str, alive: bool) -> None:
    found = tag(TOOLS)
    assert not found.accepts(text) and found.begins(text) == alive


@pytest.mark.parametrize(
    ("text", "whole", "alive"),
    [
        ('"Rome"', True, True),
        ('{"x":[{"x":"Oslo"}]}', True, True),
        ('<function=get>{"city":"Rome"}</function>', True, True),
        ('<function=get>{"city":"Rome"}</function>\n<function=add>[1]</function>', True, True),
        ("", False, True),
        ('"Paris"', False, False),
        ("Well", False, False),
        ('"Rome"\n<function=add>', False, False),
        ("<function=add>[1]</function>\n", False, True),
        ('<function=add>[1]</function>\n"Rome"', False, False),
        ("<function=add>[1]</function> ", False, False),
    ],
)
def test_a_text_of_a_schema_or_structures(text: str, whole: bool, alive: bool) -> None:
    listed = {"type": "array", "items": {"$ref": "#"}}
    schema = {
        "anyOf": [
            {"enum": ["Rome", "Oslo"]},
            {
                "type": "object",
                "properties": {"x": {"anyOf": [{"enum": ["Rome", "Oslo"]}, listed]}},
                "required": ["x"],
                "additionalProperties": False,
            },
        ]
    }
    found = tag({**TOOLS, "text": schema})
    assert found.accepts(text) == whole and found.begins(text) == alive


def test_a_text_s_schema_that_is_wrong_is_named() -> None:
    with pytest.raises(ConstraintError, match="#/text/properties/a"):
        tag({**TOOLS, "text": {"type": "object", "properties": {"a": {"type": "number", "minimum": "x"}}}})


words = st.text("<fa", min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(words, min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(words, st.sampled_from(["", "a", "<"])), min_size=1, max_size=3),
    st.lists(st.text("<fa1", max_size=9), min_size=20, max_size=40),
)
def test_reads_texts_as_a_search_for_the_first_trigger_does(
    triggers: list[str], begins: list[tuple[str, str]], texts: list[str]
) -> None:
    structures = [{"begin": b, "schema": {"const": 1}, "end": e} for b, e in begins]
    document = {"triggers": triggers, "structures": structures}
    sound = (
        all(any(b.startswith(t) for b, _ in begins) for t in triggers)
        and all(any(b.startswith(t) for t in triggers) for b, _ in begins)
        and not any(s != t and s in t for s in triggers for t in triggers)
    )
    if not sound:
        with pytest.raises(ConstraintError):
            tag(document)
        return
    found = tag(document)
    whole = [f"{b}1{e}" for b, e in begins]
    for text in (*texts, *whole, *(w + t for w, t in zip(whole * 20, texts, strict=False))):
        assert found.accepts(text) == reads(text, triggers, whole), (document, text)


def reads(text: str, triggers: list[str], whole: list[str]) -> bool:
    places = [text.find(t) for t in triggers if t in text]
    if not places:
        return True
    rest = text[min(places) :]
    return any(rest.startswith(w) and reads(rest[len(w) :], triggers, whole) for w in whole)


def test_masks_follow_single_bytes() -> None:
    vocabulary = Vocabulary.of(
        [bytes([b]) for b in range(256)] + [b"<func", b"tion=", b"=g", b'"}', b"</function> <", b"x<", b""],
        eos=[262],
    )
    plain, automaton = tag(TOOLS), tag(TOOLS, vocabulary).automaton
    assert automaton is not None and plain.automaton is not None
    state = 0
    text = b'ok <function=get>{"city":"Rome"}</function> !'
    for k in range(len(text) + 1):
        words = automaton.allowed(state)
        here = plain.automaton.advance_bytes(0, text[:k])
        for token, data in enumerate(vocabulary.tokens):
            wanted = plain.automaton.advance_bytes(here, data) >= 0 if data else plain.automaton.can_end(here)
            assert bool(int(words[token >> 5]) >> (token & 31) & 1) == wanted, (text[:k], data)
        state = automaton.step(state, text[k]) if k < len(text) else state
    assert automaton.can_end(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triggers": ["<tool"]}, r"#/triggers/0: no structure begins with the trigger '<tool'"),
        (
            {"triggers": []},
            r"#/structures/0/begin: it begins with '<function=get>', and that with no trigger",
        ),
        ({"triggers": ["<function=", "<function"]}, "holds another one, '<function'"),
        ({"structures": []}, "#/structures: there are 0"),
        ({"type": "other"}, "#/type: type is 'other'"),
        ({"format": {}}, "unknown field `format`"),
        (
            {"structures": [{"begin": "<function=f>", "schema": {"type": "objekt"}, "end": ""}]},
            "#/structures/0/schema",
        ),
        ({"structures": [{"begin": "<function=f>", "schema": {"$ref": "#"}, "end": ""}]}, "leads back"),
    ],
)
def test_errors_name_the_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        tag({**TOOLS, **change})
