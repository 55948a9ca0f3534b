"""Pay once what would otherwise be paid by the first constraint.

The loops are compiled to machine code on the first run on a machine and kept beside the package (or in
numba's cache folder); `python -m grammar.warm` does it ahead of time. Per vocabulary, the tree of tokens
and the rows inside of strings are made.
"""

from __future__ import annotations

import time

import numpy as np

from grammar import token_classes
from grammar.compile import compile_constraint
from grammar.token_pushdown import TokenPushdown
from grammar.vocabulary import Vocabulary


def warm_up(vocabulary: Vocabulary) -> None:
    """Make what every constraint over `vocabulary` shares, and load the compiled loops."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 2},
            "b": {"type": "integer", "minimum": 1},
            "c": {"type": "string", "pattern": "^[^<>]*$"},
        },
        "required": ["a", "b"],
    }
    automaton = compile_constraint("json_schema", schema, vocabulary).automaton
    assert automaton is not None
    state = 0
    for data in (b'{"', b'a":"', b"x", b'",', b'"b":2'):
        automaton.allowed(state)
        automaton.allowed_within(state, automaton.tokens_to_end(state))
        state = automaton.advance_bytes(state, data)
    automaton.allowed_within(0, 1)  # which no text keeps to, so tokens are walked one by one
    assert isinstance(automaton, TokenPushdown)
    automaton.grow_stack()
    vocabulary.strings.warm_up()
    vocabulary.patterns.warm_up()
    vocabulary.rows.warm_up()
    for pattern in ("[a-z]{2,5}[0-9]*", "(ab|cd)+"):
        table = compile_constraint("regex", pattern, vocabulary).automaton
        assert table is not None
        table.allowed(0)
        table.allowed_within(0, 3)
        table.step(0, 0)
    nodes = np.zeros((4, 1), np.int32)
    token_classes.enter_nodes(nodes[0], nodes[3], 0, np.zeros(1, np.int64), np.zeros(1, np.int32))
    live, row = np.zeros(1, np.bool_), np.zeros(1, np.uint32)
    for dtype in (np.uint8, np.uint16, np.int32):
        classes = np.zeros(4, dtype)
        token_classes.mask_by_class(live, _frozen(classes), row)
        token_classes.members_by_class(_frozen(classes), 1)


def _frozen(array: np.ndarray) -> np.ndarray:
    """As the arrays of a table are: compiled loops tell read-only arrays apart."""
    array.setflags(write=False)
    return array


if __name__ == "__main__":
    start = time.perf_counter()
    warm_up(Vocabulary.of([*(bytes([b]) for b in range(256)), b""], eos=[256]))
    print(f"loops compiled and kept in {time.perf_counter() - start:.1f} s")
