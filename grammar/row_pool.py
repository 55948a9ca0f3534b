"""Rows that masks are written to, used again: memory that was touched before is several times as quick as new one."""

from __future__ import annotations

import sys
from collections import deque

import numpy as np

_BYTES = 4 << 20  # that wait to be used


class KeptRow:
    """A mask that a machine keeps, and the states of which it is the mask.

    row      uint32 [words], read only
    address  of its memory, which compiled loops write to
    most     tokens that are enough after any of the row that were walked, without what is below on the stack
    shared   kept alive, since its identity is in `key`
    key      of `TokenPushdown`'s rows that several states have
    """

    __slots__ = ("_memory", "address", "key", "most", "row", "shared", "states")

    def __init__(self, words: int) -> None:
        self._memory = np.empty(words, np.uint32)
        self._memory.fill(0)  # so that its memory is there
        self.address = int(self._memory.ctypes.data)
        self.row = self._memory.view()
        self.row.setflags(write=False)
        self.most = 0
        self.shared: object = None
        self.key: tuple[int, ...] | None = None
        self.states: list[int] = []

    @property
    def is_read(self) -> bool:
        """Has anybody else the row, or a part of it?"""
        return sys.getrefcount(self.row) > 2 or sys.getrefcount(self._memory) > 3

    def clear(self) -> None:
        self._memory.fill(0)
        self.shared = self.key = None
        self.states.clear()


class RowPool:
    """Of one vocabulary. Rows in it have no bit set."""

    def __init__(self, words: int) -> None:
        self.words = words
        self._rows: list[KeptRow] = []
        self._most = max(_BYTES // (words * 4), 1)

    def take(self) -> KeptRow:
        try:
            return self._rows.pop()
        except IndexError:
            return KeptRow(self.words)

    def give(self, kept: KeptRow) -> None:
        """Take back a row that its machine dropped, unless somebody still reads it."""
        if len(self._rows) < self._most and not kept.is_read:
            kept.clear()
            self._rows.append(kept)

    def warm_up(self) -> None:
        while len(self._rows) < self._most:
            self._rows.append(KeptRow(self.words))


def give_all(pool: RowPool, kept: deque[KeptRow], rows: list[np.ndarray | None]) -> None:
    """What a machine leaves behind."""
    rows.clear()
    while kept:
        pool.give(kept.pop())
