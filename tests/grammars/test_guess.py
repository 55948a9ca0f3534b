"""A text that is written with guesses is the one that is written without: forced tokens, cuts, ends and budgets included."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.compile import compile_constraint
from runtime.constrain.guess import Jumps
from runtime.constrain.jump import JumpForward
from runtime.constrain.matcher import Matcher
from runtime.constrain.recall import Recall
from tests.grammars.test_matcher import CONSTRAINTS, CUTS, EOS, VOCABULARY

MORE: list[tuple[str, Any]] = [
    *CONSTRAINTS,
    ("regex", '(\\{"name":"(ab|abc)\\w?"\\} ?){2,5}'),
    ("regex", "(x|y), then (ab|abc|true)s?, and (10|日本) over"),
    ("json_schema", {"type": "array", "items": {"type": "object", "properties": {"name": {"enum": ["ab", "abc"]}, "ok": {"type": "boolean"}},
                                                "required": ["name"], "additionalProperties": False}, "minItems": 2, "maxItems": 6}),
]  # fmt: skip


def draw(text: list[int], place: Matcher, seed: int) -> int:
    """A model: the same text and mask give the same token, often the likeliest (the first) one."""
    allowed = np.flatnonzero(place.mask_bool())
    rng = random.Random(hash((seed, *text)))
    return int(allowed[0] if rng.random() < 0.7 else rng.choice(allowed.tolist()))


def written(jumps: Jumps, place: Matcher, seed: int, most: int) -> tuple[list[int], int]:
    """The text, and passes of the model."""
    text: list[int] = []
    passes = 0

    def take(token: int) -> None:
        before = place.state
        place.advance(token)
        jumps.took(before, token)
        text.append(token)

    while not place.ended and place.left:
        text += jumps.forced(place)
        if not place.left:
            break
        passes += 1
        guesses, sure = jumps.likely(place, most)
        assert len(guesses) <= most and len(guesses) < place.left and set(sure) <= set(range(len(guesses)))
        assert EOS not in guesses
        assert place.after(guesses) is not None
        places = dict(jumps.sure)
        for k in range(len(guesses) + 1):
            token = places.get(k)
            if token is None:
                token = draw(text, place, seed)
            take(token)
            if k == len(guesses) or token != guesses[k] or place.ended:
                break
    return text, passes


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(MORE),
    st.integers(0, 25),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_guesses_change_no_text_and_no_budget(
    constraint: tuple[str, Any], extra: int, seeds: list[int], most: int
) -> None:
    kind, source = constraint
    automaton = compile_constraint(kind, source, VOCABULARY).automaton  # type: ignore[arg-type]
    assert automaton is not None
    jump, recall = JumpForward(automaton, CUTS), Recall()
    budget = automaton.min_tokens + extra
    for seed in seeds:
        plain, passes = written(Jumps(jump, [], None), Matcher(automaton, budget), seed, 0)
        guessed, fewer = written(Jumps(jump, [], recall), Matcher(automaton, budget), seed, most)
        assert guessed == plain and fewer <= passes


def test_a_text_that_comes_again_takes_few_passes() -> None:
    kind, source = MORE[-1]
    automaton = compile_constraint(kind, source, VOCABULARY).automaton  # type: ignore[arg-type]
    assert automaton is not None
    jump, recall = JumpForward(automaton, CUTS), Recall()
    passes = [written(Jumps(jump, [], recall), Matcher(automaton, 60), 3, 8)[1] for _ in range(3)]
    plain = written(Jumps(jump, [], None), Matcher(automaton, 60), 3, 0)[1]
    assert passes[2] <= passes[0] and 2 * passes[2] < plain
