"""Near the end of the token budget: what is offered can be finished in time, something always is, and no more is left out than said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grammar import compile as door
from grammar.automaton import TokenAutomaton
from grammar.compile import Options, compile_constraint
from grammar.constraint_errors import ConstraintError
from grammar.spelling import Spelling
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary
from grammar.walk_tree import WalkTree

PIECES = [
    *(b'"', b'":', b'":"', b'","', b'"}', b'"]', b"{}", b"[]", b'{"', b'{"na', b"na", b"name", b'name":', b'me":"'),
    *(b"ab", b"abc", b'a"', b'bc"}', b"true", b"null", b"10", b"123", b"\\n", b"\\u", b"\\u00", b'x"', b"aaaa", b"bb"),
    *("é".encode(), b"\xa9b", b"\xe6\x97", "日本".encode(), b"a\xc3", b' "', b"0000", b"]]", b"[[", b"((", b"))"),
]  # fmt: skip
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *PIECES, b"</s>"], eos=[256 + len(PIECES)])
COUNT = 256 + len(PIECES)

NAMES = ["name", "na", "ab", "é", "a" * 9, 'q"']
SCALARS: list[Any] = ["ab", "abcabcab", 'x"', "é日", 10, -1.5, True, None]
SCHEMAS = st.recursive(
    st.one_of(
        st.just({}),
        st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda t: {"type": t}),
        st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3).map(lambda v: {"enum": v}),
        st.tuples(st.integers(0, 6), st.integers(0, 9)).map(
            lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]}
        ),
        st.integers(0, 70).map(lambda n: {"type": "string", "minLength": n}),
        st.tuples(
            st.sampled_from(["^[a-z ]{2,6}$", "^(ab|é+)$", "^[^<>]*$", "b$", "^a", "^[^<>]{3,9}$"]),
            st.integers(0, 12),
        ).map(lambda p: {"type": "string", "pattern": p[0], "minLength": p[1]}),
    ),
    lambda inner: st.one_of(
        st.tuples(
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
            st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            st.booleans(),
        ).map(
            lambda o: {
                "type": "object",
                "properties": o[0],
                "required": o[1],
                **({} if o[2] else {"additionalProperties": {"type": "integer"}}),
            }
        ),
        st.tuples(inner, st.integers(0, 3)).map(lambda a: {"type": "array", "items": a[0], "minItems": a[1]}),
        st.lists(inner, min_size=2, max_size=2).map(lambda a: {"anyOf": a}),
    ),
    max_leaves=4,
)
REGEXES = [
    "(a|b)*a(a|b){3}",
    "a{0,30}b",
    "(ab|c){2,9}",
    "[a-z]{1,4}0|é{2,3}",
    ".{3,9}(na|name)+",
    r"(name|\d)*x?",
]
GRAMMARS = [
    'root ::= "(" root ")" | "na" "me" | [a-z]+ "0"',
    'root ::= item ("," item)*\nitem ::= "[" item "]" | "abc" | "a" [^\\n]*',
    'root ::= "x" root "x" | "bb" | [0-9]{2,5}',
]
TAG = json.dumps({
    "type": "structural_tag",
    "triggers": ["<f"],
    "structures": [{"begin": "<fa>", "schema": {"type": "string", "maxLength": 3}, "end": "</fa>"}],
})  # fmt: skip


def machine_of(kind: str, source: Any, **options: Any) -> TokenPushdown:
    if kind == "regex":  # small ones are tables otherwise
        found = door._compile_large(
            "regex", source, "", door.regex_syntax.parse(source), VOCABULARY
        ).automaton
    else:
        found = compile_constraint(kind, source, VOCABULARY, options=Options(**options)).automaton  # type: ignore[arg-type]
    assert isinstance(found, TokenPushdown)
    return found


def offered(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def check(machine: TokenPushdown, state: int, budget: int) -> None:
    """Against every token, one by one."""
    row = offered(machine.allowed_within(state, budget))
    least = machine.tokens_to_end(state)
    assert least <= machine.enough(state)
    free = (
        machine._free_spelling(*machine._configs[state][:3]) is not None
    )  # a character cut short may be left out
    assert VOCABULARY.eos[0] not in row or machine.can_end(state)
    for token in range(COUNT):
        data = VOCABULARY.tokens[token]
        after = machine.advance_bytes(state, data)
        if after < 0:
            assert token not in row
            continue
        if token in row:
            assert machine.tokens_to_end(after) <= budget - 1, data
        elif not free or (data.isascii() and b"\\" not in data):
            assert machine.enough(after) > budget - 1, data
    if budget >= least:
        assert row, (budget, least)
        assert row - set(VOCABULARY.eos) or machine.can_end(state)


def walk(machine: TokenAutomaton, budget: int, rng: random.Random) -> list[int]:
    """States of a text that takes a token at random at each place; it ends in time."""
    state, states = 0, [0]
    for left in range(budget, 0, -1):
        row = offered(machine.allowed_within(state, left))
        assert row, (state, left)
        token = rng.choice(sorted(row))
        if token in VOCABULARY.eos:
            break
        state = machine.step(state, token)
        states.append(state)
    assert machine.can_end(state)
    return states


def check_all(machine: TokenPushdown, rng: random.Random) -> None:
    least = machine.min_tokens
    for spare in (0, 1, 2, 5, 30):
        states = walk(machine, least + spare, rng)
        for state in rng.sample(states, min(3, len(states))):
            low = machine.tokens_to_end(state)
            enough = machine.enough(state)
            for budget in {
                low - 1,
                low,
                low + 1,
                enough,
                enough + 1,
                enough + 2,
                low + rng.randrange(20),
                low + 40,
            }:
                if budget > 0:
                    check(machine, state, budget)


@settings(max_examples=50, deadline=None)
@given(SCHEMAS, st.booleans(), st.randoms(use_true_random=False))
@example(
    {"type": "object", "properties": {n: {} for n in NAMES}, "required": NAMES[:2]}, True, random.Random(1)
)
@example({"type": "array", "minItems": 3, "items": {"enum": ["abcabcab", "name"]}}, False, random.Random(2))
@example({"anyOf": [{"const": "aaaa" * 8}, {"type": "string", "minLength": 20}]}, False, random.Random(3))
def test_schemas_are_finished_in_time(schema: Any, any_order: bool, rng: random.Random) -> None:
    try:
        machine = machine_of("json_schema", schema, any_order=any_order)
    except ConstraintError:
        return
    check_all(machine, rng)


@pytest.mark.parametrize(
    ("kind", "source"),
    [*(("regex", r) for r in REGEXES), *(("ebnf", g) for g in GRAMMARS), ("structural_tag", TAG)],
)
@settings(max_examples=5, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_other_constraints_are_finished_in_time(kind: str, source: str, rng: random.Random) -> None:
    check_all(machine_of(kind, source), rng)


def test_a_budget_cuts_late() -> None:
    """Fixed text counts the tokens that spell it, not its bytes."""
    machine = machine_of("json_schema", {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}, objects="closed")  # fmt: skip
    inside = machine.advance_bytes(0, b'{"name":"ab')
    assert machine.enough(0) <= 6  # {"name":" is 4 tokens and the bytes to come 2
    assert machine.enough(inside) == 2
    assert offered(machine.allowed_within(inside, 3)) >= {ord("a"), VOCABULARY.ids_of[b"aaaa"][0]}
    closing = {t for t in range(COUNT) if b'"' in VOCABULARY.tokens[t]}
    assert offered(machine.allowed_within(inside, 2)) == closing & offered(machine.allowed(inside))


def test_names_that_take_all_letters_leave_longer_ones() -> None:
    names = [chr(c) for c in range(0x20, 0x80) if chr(c) not in '"\\']
    machine = machine_of("json_schema", {"type": "object", "properties": dict.fromkeys(names, False), "additionalProperties": {"type": "null"}, "minProperties": 1})  # fmt: skip
    check_all(machine, random.Random(5))


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=30), st.binary(max_size=12))
def test_spelling_is_the_fewest_tokens(tokens: list[bytes], text: bytes) -> None:
    listed = [(i, t) for i, t in enumerate(dict.fromkeys([*tokens, *(bytes([b]) for b in text)]))]
    names = dict(listed)
    fewest = [0]
    for end in range(1, len(text) + 1):  # from the left, where it goes from the right
        fewest.append(1 + min(fewest[end - len(t)] for t in names.values() if text[:end].endswith(t)))
    if not listed:
        return
    spelling = Spelling(WalkTree.ends(listed))
    assert spelling.fewest(text) == fewest[-1]
    ids = spelling.tokens(text)
    assert len(ids) == fewest[-1] and b"".join(names[i] for i in ids) == text


def test_nothing_is_compiled_after_the_warm_up() -> None:
    """Not even where a stack outgrows its table, which takes a loop that nothing else calls."""
    script = """
from grammar import pushdown_loops as loops
from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from grammar.warm import warm_up
vocabulary = Vocabulary.of([*(bytes([b]) for b in range(256)), b""], eos=[256])
warm_up(vocabulary)
called = loops.push, loops.run, loops.walk, loops.fill, loops.close, loops.need, loops.step
before = [list(f.signatures) for f in called]
assert all(before), before
machine = compile_constraint("ebnf", 'root ::= "(" root ")" | "x"', vocabulary).automaton
state = machine.advance_bytes(0, b"(" * 3000)
machine.allowed_within(state, machine.tokens_to_end(state))
assert before == [list(f.signatures) for f in called]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
