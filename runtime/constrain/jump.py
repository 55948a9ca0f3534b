"""Tokens that need no model: what a constraint forces, as the tokenizer itself would write it.

Where only one continuation exists its text is known, but not yet its tokens: how a tokenizer cuts the end
of a text depends on what follows. So the forced text is tokenised together with what precedes it and with
many continuations that the constraint allows, and only the tokens that they all share are given out; a
token that a longer one could still swallow is held back too. Nothing is forced where the text may end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grammar.automaton import TokenAutomaton

_CONTEXT = 3  # tokens before a forced run that are tokenised again with it
_LONGER = 256  # tokens looked at to see whether one could take the end of a run and more
_SAMPLES = 16  # tokens out of the mask behind a run that serve as continuations
_CACHE = 1 << 14

_CONTINUATIONS = (
    "a", "A", "the", "The", "0", "12", " ", "  ", " a", '"', '",', '":', '"}', "/", "/a", ".", "..", "./", ",", "}",
    "]", "-", "--", "_", "_a", ":", "://", "\\", "\\n", "#", "$", "(", "<", "@", "\n", "'", "é", "日", "🙂",
)  # fmt: skip


class JumpForward:
    """Forced tokens of one constraint for one tokenizer, remembered by place.

    encode   text to token ids, nothing added at its ends
    """

    def __init__(self, automaton: TokenAutomaton, encode: Callable[[str], Sequence[int]]) -> None:
        self.automaton = automaton
        self.encode = encode
        self._known: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}

    def tokens(self, state: int, before: Sequence[int] = ()) -> tuple[int, ...]:
        """The tokens that must follow in `state`, after the tokens `before` of the constrained text."""
        key = (state, tuple(before[-_CONTEXT:]))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _CACHE:
                self._known.clear()
            found = self._known[key] = tuple(self._find(state, list(key[1])))
        return found

    def _find(self, state: int, context: list[int]) -> list[int]:
        run = self.automaton.forced(state)
        if not run:
            return []
        vocabulary = self.automaton.vocabulary
        prefix = b"".join(vocabulary.tokens[t] for t in context)
        text = _whole_characters(prefix + run)
        if text is None or len(text.encode()) <= len(prefix):
            return []
        goal = self.automaton.advance_bytes(state, run)
        ids = list(self.encode(text))
        if ids[: len(context)] != context:  # the model is off the tokenizer's own path: go on from here
            context, prefix = [], b""
            text = _whole_characters(run)
            if text is None:
                return []
            ids = list(self.encode(text))
        if text.encode() == prefix + run:
            for more in self._continuations(goal):
                ids = _shared(ids, self.encode(text + more))
                if len(ids) <= len(context):
                    return []
        return self._safe(ids[len(context) :], run, goal)

    def _continuations(self, goal: int) -> list[str]:
        """Texts that can follow."""
        found = dict.fromkeys(
            c for c in _CONTINUATIONS if self.automaton.advance_bytes(goal, c.encode()) >= 0
        )
        allowed = np.flatnonzero(
            np.unpackbits(self.automaton.allowed(goal).view(np.uint8), bitorder="little")
        )
        for token in allowed[:: max(1, len(allowed) // _SAMPLES)].tolist():
            data = self.automaton.vocabulary.tokens[token]
            text = _whole_characters(data)
            if text:
                found[text] = None
        return list(found)

    def _safe(self, ids: list[int], run: bytes, goal: int) -> list[int]:
        """The first of `ids` behind which no longer token could take what is left of the run."""
        tokens = self.automaton.vocabulary.tokens
        kept: list[int] = []
        at = 0
        for token in ids:
            if not run.startswith(tokens[token], at) or not tokens[token] or self._may_grow(run[at:], goal):
                break
            kept.append(token)
            at += len(tokens[token])
        return kept

    def _may_grow(self, rest: bytes, goal: int) -> bool:
        """Could one token take `rest`, to the end of the run, and more?"""
        for longer in self.automaton.vocabulary.longer_than(rest, _LONGER):
            if self.automaton.advance_bytes(goal, longer[len(rest) :]) >= 0:
                return True
        return False


def _shared(one: Sequence[int], two: Sequence[int]) -> list[int]:
    count = 0
    while count < min(len(one), len(two)) and one[count] == two[count]:
        count += 1
    return list(one[:count])


def _whole_characters(data: bytes) -> str | None:
    """The text of `data` without a character that is cut at its end; None if it begins inside of one."""
    for cut in range(len(data), max(len(data) - 4, -1), -1):
        try:
            return data[:cut].decode()
        except UnicodeDecodeError:
            continue
    return None
