"""Which rows of a decode batch begin with the same pages, so that attention may read these once for several rows."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from runtime.engine.inputs import PageRows
from runtime.kernels.sharing import Array, share_words

# Positions that are worth it: below, joining a row's two parts costs what reading them once saves.
LEAST = 256
# Bytes of a layer that a batch must read less, or it is not worth it: as many as come in 18 us, which launches of their own and one more
# for what is shared may take longer than a step in one launch, and in the 1 us that a part of a bundle takes. On an H200 with 4 KiB a
# position 2 rows lost by it at 1,024 to 8,192 positions, 8 rows up to some 6,000, 16 up to 2,000, 64 at fewer than 1,000.
WORTH, WORTH_A_PART = 72 << 20, 4 << 20


class SharedBeginnings:
    """What is worth being read once, of decode batches one after the other."""

    def __init__(self, pages: PageRows, position_bytes: int) -> None:
        """pages: of each seat; position_bytes: of a layer's keys and values"""
        self._pages, self._bytes = pages, position_bytes
        self._found: np.ndarray | None = None  # what is worth it
        self._seats: bytes | None = None  # of the batch in which that was sought

    def forget(self) -> None:
        """A seat has other pages now."""
        self._seats = None

    def of(self, seats: Array, starts: Array, span: int, most: int) -> np.ndarray | None:
        """`bundles` of these rows, or None if they save too little. They stay as they are until other seats are in the batch."""
        key = seats.tobytes()
        known = key == self._seats
        if known and self._found is not None:
            known = bool((self._found[1] >> 32 <= starts).all())
        if not known:
            found = bundles(self._pages, seats, starts, span, most)
            self._seats, self._found = key, None if found is None or not self._worth(found, span) else found
        return self._found

    def _worth(self, found: np.ndarray, span: int) -> bool:
        return saved_positions(found) * self._bytes >= WORTH + WORTH_A_PART * most_parts(found, span)


def bundles(pages: PageRows, seats: Array, starts: Array, span: int, most: int) -> np.ndarray | None:
    """int64 [2, rows] as `Sharing` has them, or None if nothing is worth sharing.

    pages   of each seat; one that two seats have at the same place follows the same pages in both, as in a prefix tree
    seats   int64 [rows], each another one; starts int64 [rows]: positions that are cached
    span    rows share a multiple of so many positions; most: rows of a bundle

    Rows are sorted by their pages and cut into bundles of neighbours, so that most positions need not be read again.
    """
    size = pages.page_size
    counts = starts // size  # a page that is not full is nobody else's
    first = max(0, LEAST // size - 1)
    if most < 2 or len(seats) < 2 or first >= pages.table.shape[1]:
        return None
    found = np.flatnonzero(counts > first)
    keys = pages.table[seats[found], first]
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    found = found[sizes[group] > 1]
    if not len(found):
        return None
    found = found[_sorted(pages.table, seats[found], counts[found], first)]
    common = _in_common(pages.table, seats[found], counts[found], first) * size // span * span
    common[common < LEAST] = 0
    cut = np.array(_cut(common.tolist(), most), dtype=np.int64).reshape(-1, 3)
    if not len(cut):
        return None
    begins, sizes, positions = cut.T
    index = np.arange(sizes.sum())
    members = index - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = found[np.repeat(begins, sizes) + members]
    result = np.zeros((2, len(seats)), dtype=np.int64)
    result[0, : len(rows)] = rows
    result[1, rows] = share_words(np.repeat(positions, sizes), index, members, np.repeat(sizes, sizes))
    return result


def saved_positions(found: np.ndarray) -> int:
    """Of what `bundles` found: positions that need not be read again."""
    words = found[1]
    members = (words >> 8 & 0xFF) > 0
    return int((words[members] >> 32).sum())


def most_parts(found: np.ndarray, span: int) -> int:
    """In how many parts what a bundle shares is attended side by side, at most; cuda/decode_work.h cuts it."""
    return math.ceil(math.sqrt(2 * int((found[1] >> 32).max()) / span))


def _sorted(table: np.ndarray, seats: Array, counts: Array, first: int) -> Array:
    """An order in which rows that have much in common are neighbours: by some of their pages, closer together at the beginning."""
    columns = [first]
    while columns[-1] < counts.max() - 1:
        columns.append(min(int(counts.max()) - 1, columns[-1] + 1 + columns[-1] // 2))
    nobody = -1 - np.arange(len(seats))
    keys = [np.where(counts > c, table[seats, c], nobody) for c in columns]
    order: Array = np.lexsort(keys[::-1])
    return order


def _in_common(table: np.ndarray, seats: Array, counts: Array, first: int) -> Array:
    """Pages that each row and the next have in common: more than `first`, or 0. int64 [rows - 1]."""
    one, other = seats[:-1], seats[1:]
    low, high = np.zeros_like(one), np.minimum(counts[:-1], counts[1:])
    same = table[one, first] == table[other, first]
    low[same] = first + 1
    high[~same] = 0
    while (low < high).any():
        middle = (low + high + 1) // 2
        equal = table[one, middle - 1] == table[other, middle - 1]
        low = np.where(equal, middle, low)
        high = np.where(equal, high, middle - 1)
    return low


def _cut(common: list[int], most: int) -> list[tuple[int, int, int]]:
    """Bundles of neighbours, (begin, rows, positions of all of them), that save most positions: those of all rows but one of each.

    common  positions that each row and the next have in common
    """
    found: list[tuple[int, int, int]] = []
    begin = 0
    for end, shared in enumerate((*common, 0)):
        if shared:
            continue
        if end > begin:
            run = _cut_run(tuple(common[begin:end]), most)
            found += [(begin + at, rows, positions) for at, rows, positions in run]
        begin = end + 1
    return found


@lru_cache(maxsize=4096)
def _cut_run(common: tuple[int, ...], most: int) -> list[tuple[int, int, int]]:
    """The same of rows that all have something in common with the next."""
    rows = len(common) + 1
    best = [0] * (rows + 1)  # that the rows before each place save
    last = [(0, 0)] * (rows + 1)  # of the bundle that ends there: where it begins, positions
    for end in range(1, rows + 1):
        most_saved, chosen, shared = best[end - 1], (end - 1, 0), 1 << 62
        for begin in range(end - 2, max(-1, end - 1 - most), -1):
            if common[begin] < shared:
                shared = common[begin]
            saved = best[begin] + (end - begin - 1) * shared
            if saved > most_saved:
                most_saved, chosen = saved, (begin, shared)
        best[end], last[end] = most_saved, chosen
    found = []
    end = rows
    while end:
        begin, shared = last[end]
        if shared:
            found.append((begin, end - begin, shared))
        end = begin
    return found[::-1]
