"""Rows that masks are written to, used again: memory that was touched before is several times as quick as new one."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass

import numpy as np

_BYTES = 4 << 20  # that wait to be used


@dataclass(slots=True)
class KeptRow:
    """A mask that a machine keeps, and the states of which it is the mask.

    row     uint32 [words], read only
    most    tokens that are enough after any of the row that is not in `shared`, without what is below on the stack
    shared  kept alive, since its identity is in `key`
    key     of `TokenPushdown`'s rows that several states have
    """

    row: np.ndarray
    most: int
    shared: np.ndarray
    key: tuple[int, ...] | None
    states: list[int]


class RowPool:
    """Of one vocabulary. Rows in it have no bit set."""

    def __init__(self, words: int) -> None:
        self.words = words
        self._rows: list[np.ndarray] = []
        self._most = max(_BYTES // (words * 4), 1)

    def take(self) -> np.ndarray:
        try:
            return self._rows.pop()
        except IndexError:
            return np.zeros(self.words, np.uint32)

    def give(self, kept: KeptRow) -> None:
        """Take back a row that its machine dropped, unless somebody still reads it."""
        if len(self._rows) < self._most and sys.getrefcount(kept.row) == 2:
            row = kept.row
            row.setflags(write=True)
            row.fill(0)
            self._rows.append(row)

    def warm_up(self) -> None:
        while len(self._rows) < self._most:
            row = np.empty(self.words, np.uint32)
            row.fill(0)  # so that its memory is there
            self._rows.append(row)


def give_all(pool: RowPool, kept: deque[KeptRow], rows: list[np.ndarray | None]) -> None:
    """What a machine leaves behind."""
    rows.clear()
    while kept:
        pool.give(kept.pop())
