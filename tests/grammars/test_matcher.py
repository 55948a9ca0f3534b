"""A request's place in its constraint: masks, the end, budgets, forced tokens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.compile import compile_constraint
from grammar.vocabulary import Vocabulary
from runtime.constrain.jump import Cuts, JumpForward
from runtime.constrain.matcher import Matcher
from runtime.errors import InvalidRequest

WORDS = [
    b"ab",
    b"abc",
    b'{"',
    b'":',
    b'":"',
    b"name",
    b'{"name',
    b"true",
    b'"}',
    b"10",
    "日本".encode(),
    "日".encode(),
]
VOCABULARY = Vocabulary.of([*(bytes([b]) for b in range(256)), *WORDS, b"</s>"], eos=[256 + len(WORDS)])
EOS = VOCABULARY.eos[0]

CONSTRAINTS: list[tuple[str, Any]] = [
    ("regex", "ab{2,6}(cd)?"),
    ("regex", "[ab]{3}|10*"),
    ("json_schema", {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["name"]}),
    ("json_schema", {"type": "array", "items": {"enum": ["日本", "日", True]}, "minItems": 1}),
    ("json_schema", {}),
]  # fmt: skip


def encode(text: str) -> list[int]:
    """Greedy, longest token first: canonical for this vocabulary."""
    data, out = text.encode(), []
    while data:
        piece = next(data[:n] for n in range(min(len(data), 8), 0, -1) if data[:n] in VOCABULARY.ids_of)
        out.append(VOCABULARY.ids_of[piece][0])
        data = data[len(piece) :]
    return out


CUTS = Cuts(encode)


def matcher(kind: str, source: Any, max_tokens: int | None = None) -> Matcher:
    automaton = compile_constraint(kind, source, VOCABULARY).automaton  # type: ignore[arg-type]
    assert automaton is not None
    return Matcher(automaton, max_tokens)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(CONSTRAINTS), st.integers(0, 15), st.randoms(use_true_random=False), st.booleans())
def test_complete_at_every_budget(
    constraint: tuple[str, Any], extra: int, rng: random.Random, jump: bool
) -> None:
    """Random tokens out of the masks always make a complete text within the budget, with and without jumps."""
    kind, source = constraint
    compiled = compile_constraint(kind, source, VOCABULARY)  # type: ignore[arg-type]
    assert compiled.automaton is not None
    place = Matcher(compiled.automaton, compiled.automaton.min_tokens + extra)
    taken: list[int] = []
    ahead = JumpForward(compiled.automaton, CUTS)
    while not place.ended and place.left:
        forced = place.forced_tokens(ahead, taken) if jump else []
        for token in forced:
            assert place.allows(token)
            place.advance(token)
            taken.append(token)
        if place.left == 0:
            break
        choices = np.flatnonzero(place.mask_bool()).tolist()
        token = rng.choice(choices)
        place.advance(token)
        taken.append(token)
    assert place.can_end
    text = b"".join(VOCABULARY.tokens[t] for t in taken).decode()
    assert compiled.accepts(text)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(CONSTRAINTS), st.randoms(use_true_random=False))
def test_forced_tokens_are_the_tokenizers_own(constraint: tuple[str, Any], rng: random.Random) -> None:
    """Wherever the model took canonical tokens, what is forced continues the canonical tokenisation."""
    place = matcher(*constraint, max_tokens=40)
    taken: list[int] = []
    jump = JumpForward(place.automaton, CUTS)
    while not place.ended and place.left:
        forced = place.forced_tokens(jump, taken)
        for token in forced:
            place.advance(token)
        taken += forced
        if not place.left:
            break
        rest = place.fork()
        tail = list(taken)
        while not rest.ended and rest.left:  # any way to the end
            token = rng.choice(np.flatnonzero(rest.mask_bool()).tolist())
            rest.advance(token)
            tail += [] if token == EOS else [token]
        data = b"".join(VOCABULARY.tokens[t] for t in tail)
        canonical = encode(data.decode())
        if canonical[: len(taken) - len(forced)] == taken[: len(taken) - len(forced)]:
            assert canonical[: len(taken)] == taken
        ahead = canonical[len(taken) : len(taken) + 1]
        if canonical[: len(taken)] != taken or not ahead or not place.allows(ahead[0]):
            return
        place.advance(ahead[0])
        taken += ahead


def test_a_run_is_held_back_where_a_longer_token_fits() -> None:
    place = matcher("json_schema", {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": False})  # fmt: skip
    spelled = [VOCABULARY.tokens[t] for t in place.forced_tokens(JumpForward(place.automaton, CUTS))]
    assert b"".join(spelled) == b'{"name":"' and spelled[0] == b'{"name'
    shorter = matcher("regex", "xab(c|d)")
    assert [VOCABULARY.tokens[t] for t in JumpForward(shorter.automaton, CUTS).tokens(0)] == [
        b"x"
    ]  # "ab" could become "abc"


def test_long_texts_of_constraints_are_not_kept() -> None:
    """The tokenizer's cuts outlive constraints, whose texts may be as long as a run can be."""
    cuts = Cuts(encode)
    for i in range(20):
        place = matcher("regex", f"{i}{'x' * 5000}(c|d)")
        assert len(place.forced_tokens(JumpForward(place.automaton, cuts))) > 4000
    short = matcher("regex", "xyz(c|d)")
    assert short.forced_tokens(JumpForward(short.automaton, cuts))
    kept = [text for known in (cuts._known, cuts._changed, cuts._changed_each) for text in known]
    assert kept and sum(len(str(key)) for key in kept) < 20_000


def test_the_end_is_taken_only_when_complete() -> None:
    place = matcher("regex", "a|ab")
    with pytest.raises(ValueError, match="the end token 268 came before the constrained text was complete"):
        place.advance(EOS)
    with pytest.raises(ValueError, match="token 120 is not allowed at position 0"):
        place.advance(ord("x"))
    place.advance(ord("a"))
    assert place.allows(EOS) and place.allows(ord("b")) and place.can_end and not place.must_end
    assert place.forced_tokens(JumpForward(place.automaton, CUTS)) == []
    place.advance(EOS)
    assert place.ended and np.flatnonzero(place.mask_bool()).tolist() == [EOS]
    with pytest.raises(ValueError, match="after the end"):
        place.advance(ord("b"))
    place.rollback(2)
    assert place.state == 0 and not place.ended and place.used == 0


def test_a_budget_below_the_shortest_text_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        matcher("regex", "x{12}", max_tokens=11)
    assert str(caught.value) == (
        "max_new_tokens is 11 but the shortest text of the constraint takes 12 tokens; raise max_new_tokens to at least 12"
    )
    assert caught.value.param == "max_new_tokens"


def test_forks_are_apart() -> None:
    place = matcher("regex", "[ab]{4}")
    place.advance(ord("a"))
    other = place.fork()
    other.advance(ord("b"))
    assert (place.used, other.used) == (1, 2) and place.state != other.state
    out = np.zeros(VOCABULARY.words, np.uint32)
    place.fill(out)
    assert (out == place.mask()).all()
    with pytest.raises(ValueError, match="rollback of 3 tokens, but 1 were taken"):
        place.rollback(3)
