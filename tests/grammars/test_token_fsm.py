"""Token tables against trying every token byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.constraint_errors import Unsatisfiable, VocabularyError
from grammar.fsm import Fsm
from grammar.regex import compile_regex
from grammar.token_fsm import TokenFsm
from grammar.vocabulary import Vocabulary, byte_level_alphabet

BYTES = [bytes([b]) for b in range(256)]
WORDS = [
    b"",
    b"ab",
    b"abc",
    b"ab",
    b"bc",
    b"b c",
    b"01",
    b"10",
    b"0a",
    "é".encode(),
    b"\xa9a",
    "日本".encode(),
    b"</s>",
]
FULL = Vocabulary.of([*BYTES, *WORDS], eos=[268], special=[256])

PATTERNS = [
    "a(bc)?", "3(\\.5)?", "(a|ab)", "[0-9]+(e[0-9]+)?", "[ab]{2,5}c*", ".{0,6}", "(é|日本)+", "(ab|b c|0)*", "[^a]b?", "a{3}|b{2}",
]  # fmt: skip


def bits(row: np.ndarray, tokens: int) -> np.ndarray:
    return np.unpackbits(row.view(np.uint8), bitorder="little")[:tokens].astype(bool)


def reachable(automaton: TokenFsm) -> list[int]:
    order, seen = [0], {0}
    for state in order:
        for goal in set(automaton.next[state].tolist()) - {-1} - seen:
            seen.add(goal)
            order.append(goal)
    return order


def check_against_bytes(automaton: TokenFsm, fsm: Fsm) -> None:
    """Every token of every state: allowed exactly if a complete text can still follow."""
    vocabulary = automaton.vocabulary
    for state in reachable(automaton):
        mask = bits(automaton.allowed(state), len(vocabulary))
        for token, data in enumerate(vocabulary.tokens):
            if token in vocabulary.eos:
                assert mask[token] == fsm.accepting[state]
                continue
            goal = fsm.run(data, state) if data else -1
            goal = goal if goal >= 0 and automaton.distance[goal] >= 0 else -1
            assert automaton.step(state, token) == goal
            assert mask[token] == (goal >= 0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_are_brute_force(pattern: str) -> None:
    fsm = compile_regex(pattern)
    automaton = TokenFsm.of(fsm, FULL)
    check_against_bytes(automaton, fsm)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(PATTERNS),
    st.lists(
        st.binary(max_size=4) | st.text("abc01 é日", max_size=4).map(str.encode), min_size=2, max_size=60
    ),
)
def test_any_vocabulary(pattern: str, tokens: list[bytes]) -> None:
    """Also one that cannot spell everything: what cannot be finished with its tokens is not begun."""
    vocabulary = Vocabulary.of([*tokens, b"</s>"], eos=[len(tokens)])
    fsm = compile_regex(pattern)
    try:
        automaton = TokenFsm.of(fsm, vocabulary)
    except Unsatisfiable:
        assert not spelled(fsm, vocabulary, 0)
        return
    check_against_bytes(automaton, fsm)
    for state in reachable(automaton):
        assert automaton.distance[state] >= 0
        mask = bits(automaton.allowed(state), len(vocabulary))
        assert mask.any()
        if automaton.distance[state] > 0:
            near = [
                automaton.distance[automaton.step(state, int(t))]
                for t in np.flatnonzero(mask)
                if t < len(tokens)
            ]
            assert automaton.distance[state] == 1 + min(near)
        for budget in (1, 2, 5, 2):  # and again
            within = bits(automaton.allowed_within(state, budget), len(vocabulary))
            for token in range(len(tokens)):
                goal = automaton.step(state, token)
                assert within[token] == (goal >= 0 and automaton.distance[goal] <= budget - 1)


def spelled(fsm: Fsm, vocabulary: Vocabulary, start: int) -> bool:
    todo, seen = [start], {start}
    while todo:
        state = todo.pop()
        if fsm.accepting[state]:
            return True
        for data in vocabulary.tokens:
            goal = fsm.run(data, state) if data else -1
            if goal >= 0 and goal not in seen:
                seen.add(goal)
                todo.append(goal)
    return False


def test_end_tokens_stand_beside_continuations() -> None:
    automaton = TokenFsm.of(compile_regex("[0-9]{1,3}"), FULL)
    after_one = automaton.step(0, ord("7"))
    mask = bits(automaton.allowed(after_one), len(FULL))
    assert mask[268] and mask[ord("0")] and not mask[256]
    assert automaton.step(after_one, 268) == -1
    assert not bits(automaton.allowed(0), len(FULL))[268]


def test_lengths_in_tokens() -> None:
    automaton = TokenFsm.of(compile_regex("abc{0,3}"), FULL)
    assert (automaton.min_tokens, automaton.max_tokens) == (1, 5)
    assert TokenFsm.of(compile_regex("a+"), FULL).max_tokens is None


def test_nothing_to_generate_is_an_error_at_compile_time() -> None:
    with pytest.raises(Unsatisfiable, match="no text matches"):
        TokenFsm.of(compile_regex(r"[^\s\S]"), FULL)
    digits = Vocabulary.of([b"1", b"2", b"!"], eos=[2])
    with pytest.raises(Unsatisfiable, match="the vocabulary has no tokens"):
        TokenFsm.of(compile_regex("[a-z]+"), digits)


def test_only_kept_masks_take_memory() -> None:
    whole = TokenFsm.of(compile_regex("[ab]{0,64}"), FULL)
    few = TokenFsm(whole.fsm, FULL, whole.next, whole.class_of, whole.distance, whole.longest, row_bytes=256)
    masks = [few.allowed(s).copy() for s in range(few.states)]
    assert sum(row is not None for row in few._rows) * masks[0].nbytes <= 256
    assert all((whole.allowed(s) == masks[s]).all() for s in range(few.states))


def byte_level_file() -> dict:
    of = {b: c for c, b in byte_level_alphabet().items()}
    pieces = ["".join(of[b] for b in data) for data in [*BYTES, b" the", "é".encode()]]
    vocab = {p: i for i, p in enumerate(pieces)} | {"<|end|>": 258}
    return {
        "model": {"type": "BPE", "vocab": vocab},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]},
        "added_tokens": [
            {"id": 258, "content": "<|end|>", "special": True},
            {"id": 259, "content": "<tool>", "special": False},
        ],
    }


def test_byte_level_tokenizer() -> None:
    vocabulary = Vocabulary.from_tokenizer_json(byte_level_file(), eos=["<|end|>"], size=300)
    assert vocabulary.tokens[:256] == tuple(BYTES)
    assert vocabulary.tokens[256:260] == (b" the", "é".encode(), b"", b"<tool>")
    assert len(vocabulary) == 300 and vocabulary.eos == (258,)


def test_sentencepiece_tokenizer() -> None:
    data = {
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁the": 4, "▁": 5, "a": 6, "\n": 7}},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "added_tokens": [{"id": i, "content": c, "special": True} for i, c in enumerate(["<unk>", "<s>", "</s>"])],
    }  # fmt: skip
    vocabulary = Vocabulary.from_tokenizer_json(data, eos=[2])
    assert vocabulary.tokens == (b"", b"", b"", b"\n", b" the", b" ", b"a", b"\n")
    assert vocabulary.ids_of[b"\n"] == (3, 7)
    automaton = TokenFsm.of(compile_regex(r"\n"), vocabulary)
    assert automaton.class_of[3] == automaton.class_of[7] != 0


def test_vocabularies_that_have_no_bytes_are_refused() -> None:
    with pytest.raises(VocabularyError, match="a WordPiece tokenizer"):
        Vocabulary.from_tokenizer_json({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, eos=[0])
    with pytest.raises(VocabularyError, match="the end token '</s>' is not in the tokenizer"):
        Vocabulary.from_tokenizer_json(byte_level_file(), eos=["</s>"])


def test_digest_names_the_vocabulary() -> None:
    same = Vocabulary.of([*BYTES, *WORDS], eos=[268], special=[256])
    assert same.digest == FULL.digest
    assert Vocabulary.of([*BYTES, *WORDS], eos=[267], special=[256]).digest != FULL.digest
