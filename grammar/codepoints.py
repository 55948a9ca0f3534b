"""Sets of code points, and the byte strings that spell them in UTF-8.

A set is a tuple of inclusive ranges, sorted, disjoint and not adjacent. Surrogates are in no text, so
they are dropped when a set is spelled.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

Ranges = tuple[tuple[int, int], ...]
ByteRange = tuple[int, int]

MAX = sys.maxunicode
ALL: Ranges = ((0, MAX),)
DIGIT: Ranges = ((0x30, 0x39),)
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
ECMA_SPACE: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip


def normalise(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort and join ranges that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def invert(ranges: Ranges) -> Ranges:
    gaps, start = [], 0
    for low, high in ranges:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= MAX:
        gaps.append((start, MAX))
    return tuple(gaps)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    both = []
    for low, high in a:
        for low2, high2 in b:
            if low <= high2 and low2 <= high:
                both.append((max(low, low2), min(high, high2)))
    return normalise(both)


def subtract(a: Ranges, b: Ranges) -> Ranges:
    return intersect(a, invert(b))


def _where(test: Callable[[str], bool]) -> Ranges:
    found: list[tuple[int, int]] = []
    start = -1
    for point in range(MAX + 2):
        inside = point <= MAX and test(chr(point))
        if inside and start < 0:
            start = point
        elif not inside and start >= 0:
            found.append((start, point - 1))
            start = -1
    return tuple(found)


@cache
def unicode_class(letter: str) -> Ranges:
    """What `\\d`, `\\s` or `\\w` match in a Python pattern with the Unicode flag."""
    if letter == "d":
        return _where(str.isdecimal)
    if letter == "s":
        return _where(str.isspace)
    return _where(lambda c: c.isalnum() or c == "_")


@cache
def category(name: str) -> Ranges | None:
    """Code points of a general category, "L" or "Lu"; None if there is no such category."""
    found = _where(lambda c: unicodedata.category(c).startswith(name))
    return found or None


@cache
def _fold_groups() -> dict[int, tuple[int, ...]]:
    parent: dict[int, int] = {}

    def find(x: int) -> int:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for point in range(MAX + 1):
        char = chr(point)
        for other in (char.lower(), char.upper()):
            if len(other) == 1 and other != char:
                parent[find(point)] = find(ord(other))
    parent[find(0x130)] = find(0x69)  # the dotted capital's simple lower case is i, but str.lower gives two
    for a, b in ((0x1E9E, 0xDF), (0x1FD3, 0x390), (0x1FE3, 0x3B0), (0xFB05, 0xFB06)):
        parent[find(a)] = find(b)
    groups: dict[int, list[int]] = {}
    for point in parent:
        groups.setdefault(find(point), []).append(point)
    return {p: tuple(g) for g in groups.values() if len(g) > 1 for p in g}


def fold(ranges: Ranges, unicode: bool) -> Ranges:
    """Add what differs in case only: of ASCII letters, or as Python's Unicode patterns do."""
    extra: list[tuple[int, int]] = []
    if not unicode:
        for low, high in intersect(ranges, ((0x41, 0x5A), (0x61, 0x7A))):
            extra.append((low ^ 0x20, high ^ 0x20))
    else:
        for point, group in _fold_groups().items():
            if any(low <= point <= high for low, high in ranges):
                extra.extend((p, p) for p in group)
    return normalise([*ranges, *extra])


def utf8_sequences(ranges: Ranges) -> list[tuple[ByteRange, ...]]:
    """Sequences of byte ranges that together spell exactly the code points in `ranges`."""
    found: list[tuple[ByteRange, ...]] = []
    todo = list(reversed(ranges))
    while todo:
        low, high = todo.pop()
        if low > high:
            continue
        if low <= 0xDFFF and high >= 0xD800:
            todo += [(0xE000, high), (low, 0xD7FF)]
            continue
        cut = next((m for m in (0x7F, 0x7FF, 0xFFFF) if low <= m < high), None)
        if cut is not None:
            todo += [(cut + 1, high), (low, cut)]
            continue
        if high > 0x7F:
            for i in range(1, 4):
                mask = (1 << (6 * i)) - 1
                if (low & ~mask) != (high & ~mask):
                    if low & mask:
                        todo += [((low | mask) + 1, high), (low, low | mask)]
                        break
                    if (high & mask) != mask:
                        todo += [(high & ~mask, high), (low, (high & ~mask) - 1)]
                        break
            else:
                found.append(tuple(zip(chr(low).encode(), chr(high).encode())))
            continue
        found.append(((low, high),))
    return found
