"""Tokens that need no model: what a constraint forces, as the tokenizer itself would write it.

Where only one continuation exists its text is known, but not yet its tokens: how a tokenizer cuts the end
of a text depends on what follows. So the forced text is tokenised together with what precedes it and with
many continuations that the constraint allows, and only the tokens that they all share are given out; a
token that a longer one could still swallow is held back too, as a guess. Nothing is forced where the text may end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from grammar.automaton import TokenAutomaton

CONTEXT = 3  # tokens before a forced run that are tokenised again with it
_LONGER = 256  # tokens looked at to see whether one could take the end of a run and more
_SAMPLES = 16  # tokens out of the mask behind a run that serve as continuations
_CACHE = 1 << 14
_SHORT = 256  # characters or bytes; what belongs to longer texts is found anew, so that nobody's constraint fills the memory

_CONTINUATIONS = (
    "a", "A", "the", "The", "0", "12", " ", "  ", " a", '"', '",', '":', '"}', "/", "/a", ".", "..", "./", ",", "}",
    "]", "-", "--", "_", "_a", ":", "://", "\\", "\\n", "#", "$", "(", "<", "@", "\n", "'", "é", "日", "🙂",
)  # fmt: skip


K = TypeVar("K")
V = TypeVar("V")
Pieces = Callable[[str], tuple[Sequence[int], Sequence[int | None]]]
Cut = tuple[tuple[int, ...], Sequence[int | None]]


class Cuts:
    """How a tokenizer cuts texts; shared by all constraints.

    encode   text to token ids, nothing added at its ends
    pieces   the same with the number of each token's piece, if the tokenizer cuts texts into pieces and each for itself: how
             a piece becomes tokens, and where it ends, depends on nothing before it
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], pieces: Pieces | None = None) -> None:
        self.encode = encode
        self._pieces = pieces
        self._changed: dict[tuple[str, tuple[str, ...]], int] = {}
        self._changed_each: dict[tuple[str, str], int] = {}
        self._known: dict[str, Cut] = {}

    def pieces(self, text: str, *, keep: bool = False) -> Cut:
        """Ids of a text, and the number of the piece that each belongs to; None where that is not known. `keep` it if other
        constraints may ask for it."""
        found = self._known.get(text)
        if found is None:
            if self._pieces is None:
                ids: Sequence[int] = self.encode(text)
                numbers: Sequence[int | None] = (None,) * len(ids)
            else:
                ids, numbers = self._pieces(text)
            found = tuple(ids), numbers
            if keep and len(text) <= _SHORT:
                _keep(self._known, text, found)
        return found

    def changed(self, text: str, following: tuple[str, ...]) -> int:
        """Tokens at the end of a text that become others with one of `following` behind it."""
        key = (text, following)
        found = self._changed.get(key)
        if found is None:
            found = max((self._changed_by(text, more) for more in following), default=0)
            if len(text) <= _SHORT:
                _keep(self._changed, key, found)
        return found

    def _changed_by(self, text: str, more: str) -> int:
        key = (text, more)
        found = self._changed_each.get(key)
        if found is None:
            ids, longer = self.encode(text), self.encode(text + more)
            same = next((i for i, (a, b) in enumerate(zip(ids, longer, strict=False)) if a != b), len(ids))
            found = len(ids) - min(same, len(longer))
            if len(text) <= _SHORT:
                _keep(self._changed_each, key, found)
        return found


class Run(NamedTuple):
    """Of a forced text: the tokens that must come, and behind them those that the tokenizer would write for the rest of it, which
    a longer token or another cut may take the place of."""

    tokens: tuple[int, ...]
    guesses: tuple[int, ...]


NOTHING = Run((), ())


class JumpForward:
    """Forced tokens of one constraint for one tokenizer, remembered by place."""

    def __init__(self, automaton: TokenAutomaton, cuts: Cuts) -> None:
        self.automaton = automaton
        self._cuts = cuts
        self._runs: dict[int, bytes] = {}
        self._next: dict[int, tuple[str, ...]] = {}
        self._grows: dict[tuple[int, bytes], bool] = {}
        self._known: dict[tuple[int, tuple[int, ...]], Run] = {}
        self._found: dict[tuple[int, tuple[int, ...]], Run] = {}

    def tokens(self, state: int, before: Sequence[int] = ()) -> tuple[int, ...]:
        """The tokens that must follow in `state`, after the tokens `before` of the constrained text."""
        return self.run(state, before).tokens

    def run(self, state: int, before: Sequence[int] = ()) -> Run:
        """What is forced in `state`, after the tokens `before` of the constrained text."""
        run = self._runs.get(state)
        if run is None:
            run = self.automaton.forced(state)
            if len(run) <= _SHORT:
                _keep(self._runs, state, run)
        if not run:
            return NOTHING
        key = (state, tuple(before[-CONTEXT:]))
        found = self._known.get(key)
        if found is None:  # what a model writes is new every time, what it ends with is not
            short = (state, self._tail(key[1], run))
            found = self._found.get(short)
            if found is None:
                found = _keep(self._found, short, self._find(state, run, short[1]))
            _keep(self._known, key, found)
        return found

    def _tail(self, context: tuple[int, ...], run: bytes) -> tuple[int, ...]:
        """The last tokens of the context, as many as the tokens of the run depend on; none if the model is off the
        tokenizer's own path, and goes on from here."""
        text = _whole_characters(self._bytes(context) + run) if context else None
        if text is None:
            return ()
        count = len(context)
        ids, pieces = self._cuts.pieces(text)
        if ids[:count] != context:
            return ()
        if len(ids) == count or pieces[count] is None:
            return context
        return context[pieces.index(pieces[count]) :]

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        spelled = self.automaton.vocabulary.tokens
        return b"".join(spelled[t] for t in tokens)

    def _find(self, state: int, run: bytes, context: tuple[int, ...]) -> Run:
        prefix = self._bytes(context)
        text = _whole_characters(prefix + run)
        if text is None or len(text.encode()) <= len(prefix):
            return NOTHING
        goal = self.automaton.advance_bytes(state, run)
        ids, pieces = self._cuts.pieces(text, keep=True)
        if ids[: len(context)] != context:  # a tokenizer that treats the beginning of a text otherwise
            context, prefix = (), b""
            text = _whole_characters(run)
            if text is None:
                return NOTHING
            ids, pieces = self._cuts.pieces(text, keep=True)
        own = ids[len(context) :]
        sure = own
        if text.encode() == prefix + run:
            last = self._end_of(text, ids, pieces)
            most = self._cuts.changed(last, self._continuations(goal))
            sure = own[: max(len(own) - most, 0)]
        safe = self._safe(sure, run, goal)
        return Run(safe, tuple(own[len(safe) :]))

    def _end_of(self, text: str, ids: Sequence[int], pieces: Sequence[int | None]) -> str:
        """The last two pieces of a text; what follows it changes no others. The whole text if they are not known."""
        last = pieces[-1] if pieces else None
        if last is None:
            return text
        first = next(i for i, piece in enumerate(pieces) if piece is not None and piece >= last - 1)
        spelled = self._bytes(ids[:first])
        data = text.encode()
        return data[len(spelled) :].decode("utf-8", "replace") if data.startswith(spelled) else text

    def _continuations(self, goal: int) -> tuple[str, ...]:
        """Texts that can follow."""
        known = self._next.get(goal)
        if known is not None:
            return known
        words = self.automaton.allowed(goal)
        found: dict[str, None] = {}
        for known_text in _CONTINUATIONS:
            data = known_text.encode()
            token = self.automaton.vocabulary.ids_of.get(data)
            if (
                self.automaton.advance_bytes(goal, data) >= 0
                if token is None
                else int(words[token[0] >> 5]) >> (token[0] & 31) & 1
            ):
                found[known_text] = None
        some = np.flatnonzero(words)
        for at in some[:: max(1, len(some) // _SAMPLES)].tolist():
            word = int(words[at])
            text = _whole_characters(
                self.automaton.vocabulary.tokens[at * 32 + (word & -word).bit_length() - 1]
            )
            if text:
                found[text] = None
        return _keep(self._next, goal, tuple(found))

    def _safe(self, ids: Sequence[int], run: bytes, goal: int) -> tuple[int, ...]:
        """The first of `ids` behind which no longer token could take what is left of the run."""
        tokens = self.automaton.vocabulary.tokens
        kept: list[int] = []
        at = 0
        for token in ids:
            if not run.startswith(tokens[token], at) or not tokens[token] or self._may_grow(run[at:], goal):
                break
            kept.append(token)
            at += len(tokens[token])
        return tuple(kept)

    def _may_grow(self, rest: bytes, goal: int) -> bool:
        """Could one token take `rest`, to the end of the run, and more?"""
        found = self._grows.get((goal, rest))
        if found is None:
            longer = self.automaton.vocabulary.longer_than(rest, _LONGER)
            found = any(self.automaton.advance_bytes(goal, token[len(rest) :]) >= 0 for token in longer)
            if len(rest) <= _SHORT:
                _keep(self._grows, (goal, rest), found)
        return found


def _keep(known: dict[K, V], key: K, value: V) -> V:
    if len(known) >= _CACHE:
        known.clear()
    known[key] = value
    return value


def _whole_characters(data: bytes) -> str | None:
    """The text of `data` without a character that is cut at its end; None if it begins inside of one."""
    for cut in range(len(data), max(len(data) - 4, -1), -1):
        try:
            return data[:cut].decode()
        except UnicodeDecodeError:
            continue
    return None
