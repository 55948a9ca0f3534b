"""Machines of JSON Schemas begin with the states of any value: they answer like ones that build all by themselves."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from grammar.compile import MACHINE_LIMITS
from grammar.measure import Measure
from grammar.schema.compiler import SchemaOptions, compile_schema
from grammar.schema.document import Document
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary

PIECES = (
    b'"',
    b'":',
    b'{"',
    b'"}',
    b"},",
    b"[1",
    b"12",
    b"1.5e3",
    b"true",
    b"null",
    b"ab",
    b"name",
    b"\\u00",
    b"\n",
)
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *PIECES, b""], eos=[256 + len(PIECES)])
SCHEMAS: tuple[Any, ...] = (
    True,
    {"type": ["integer", "string"]},
    {"type": "object", "properties": {"name": {}, "n": {"type": "number"}}, "required": ["n"]},
    {"type": "array", "items": {"anyOf": [{"type": "number"}, {"enum": [[], {}, "ab"]}, {"minimum": 3}]}},
    {"properties": {"next": {"$ref": "#"}, "i": {"type": "integer"}}, "maxProperties": 3},
)


def both(schema: Any, any_order: bool) -> tuple[TokenPushdown, TokenPushdown]:
    compiled = compile_schema(Document(schema), SchemaOptions(any_order=any_order))
    alone = compiled.terms.copy(MACHINE_LIMITS)
    measures = compiled.measure, Measure(alone, compiled.rules)
    assert measures[0].begun is not None and measures[1].begun is None
    found = [TokenPushdown(m.terms, compiled.start, m, VOCABULARY, MACHINE_LIMITS) for m in measures]
    found[0].explore(4000, 10.0)
    return found[0], found[1]


@pytest.mark.parametrize("any_order", (False, True))
@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_begun_machines_answer_like_others(schema: Any, any_order: bool) -> None:
    one, other = both(schema, any_order)
    rng = random.Random(3)
    for _ in range(12):
        a = b = 0
        for _ in range(25):
            row = one.allowed(a)
            assert (row == other.allowed(b)).all()
            assert one.closing_text(a) == other.closing_text(b)
            assert one.enough(a) == other.enough(b) and one.forced(a) == other.forced(b)
            for budget in (one.tokens_to_end(a), one.tokens_to_end(a) + 2):
                assert (one.allowed_within(a, budget) == other.allowed_within(b, budget)).all()
            tokens = [t for t, data in enumerate(VOCABULARY.tokens) if data and row[t >> 5] >> (t & 31) & 1]
            if not tokens:
                break
            token = rng.choice(tokens)
            a, b = one.step(a, token), other.step(b, token)


def test_machines_do_not_write_to_what_they_begin_with() -> None:
    sizes = []
    for _ in range(2):
        machine = both(True, False)[0]
        assert machine.measure.begun is not None
        sizes.append((machine.measure.begun.terms.count, machine.states, machine.nbytes))
        for schema in SCHEMAS:
            both(schema, True)
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == 1, "the states that all share are not counted"
