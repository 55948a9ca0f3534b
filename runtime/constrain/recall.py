"""What the texts of a constraint went on with, so that the next text's tokens can be guessed.

Answers to one schema repeat each other: the same optional keys, the same separators, often the same values. For each place of
a constraint and the two tokens before it, the token that came is kept while it keeps coming. A guess is verified by
the model, so a wrong one costs a row of a step, never another answer.
"""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN, CONTESTED = -1, -2
# What a token's weight is: when it is new, what each time adds, at most, what another token takes away, and from where on it is
# expected. So it comes at least three times in four, unless it came once and nothing else ever did.
_NEW, _MORE, _MOST, _LESS, _ENOUGH = 2, 1, 8, 3, 2
_BYTES = 300  # of a place

Key = tuple[int, int, int]


class Recall:
    """At most twice `size` places; those that nobody asked for go first."""

    def __init__(self, size: int = 1024) -> None:
        self.size = size
        self._young: dict[Key, tuple[int, int]] = {}
        self._old: dict[Key, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def held_bytes(self) -> int:
        """About."""
        return _BYTES * len(self)

    def learn(self, state: int, before: Sequence[int], token: int) -> None:
        """`token` came in `state`, after the tokens `before` of the text."""
        key = _key(state, before)
        found = self._find(key)
        if found is None:
            now = token, _NEW
        else:
            last, weight = found
            if last == token:
                now = token, min(weight + _MORE, _MOST)
            elif weight >= _LESS:
                now = last, weight - _LESS
            else:
                now = token, 0
        self._keep(key, now)

    def next(self, state: int, before: Sequence[int]) -> int:
        """The token to expect; UNKNOWN if nobody was here, CONTESTED if texts differ."""
        found = self._find(_key(state, before))
        if found is None:
            return UNKNOWN
        return found[0] if found[1] >= _ENOUGH else CONTESTED

    def _find(self, key: Key) -> tuple[int, int] | None:
        found = self._young.get(key)
        if found is None and (found := self._old.pop(key, None)) is not None:
            self._keep(key, found)
        return found

    def _keep(self, key: Key, value: tuple[int, int]) -> None:
        self._young[key] = value
        if len(self._young) >= self.size:
            self._old, self._young = self._young, {}


def _key(state: int, before: Sequence[int]) -> Key:
    count = len(before)
    return state, before[-2] if count > 1 else -1, before[-1] if count else -1
