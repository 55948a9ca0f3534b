"""Terms: languages of byte strings as integers, put together and simplified.

Equal terms are the same integer. All kinds are listed here; of those that other modules make (`grammar.terms` brings
them together), this one knows only whether they match the empty string, and whether a call may come first.
Counted repeats are one term for each count, without copies of what is repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from grammar import codepoints as cp
from grammar.byte_masks import byte_mask
from grammar.constraint_errors import TooLarge

Arc = tuple[int, tuple[int, ...], int]  # bytes as a 256-bit mask, terms pushed, term

EMPTY = 0  # matches nothing
EPSILON = 1  # matches the empty string

SET, LITERAL, CAT, ALT, REPEAT, CALL, STRING, BODY, STATE, MEMBERS, REFERENCE, ELSE, UNLIKE, TAKEN = range(
    2, 16
)  # kinds of terms


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a constraint may get before it is refused."""

    states: int = 60_000
    seconds: float = 10.0
    terms: int = 2_000_000


DEFAULT_LIMITS = Limits()
_FEW, _DEEP = 8, 100  # texts that need no tree, and how deep one gets


class TermArena:
    """An arena of terms. Not thread safe; one compilation owns it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.seconds
        self._ids: dict[tuple, int] = {("empty",): EMPTY, ("epsilon",): EPSILON}
        self._data: list[tuple] = [(0,), (1,)]
        self._nullable: list[bool] = [False, True]
        self._head_call: list[bool] = [False, False]
        self._free: dict[int, int] = {}
        self._free_needs: dict[int, int] = {}
        self._charsets: dict[cp.Ranges, int] = {}
        self._taking: set[int] = set()  # terms that end in a `taken`
        self._joining = 0  # calls of `_join_heads` that have not returned

    def _new(self, key: tuple, nullable: bool, head_call: bool = False) -> int:
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self._data)
            if found >= self.limits.terms:
                raise TooLarge(f"the constraint needs more than {self.limits.terms:,} terms")
            if not found & 1023:
                self.check_time()
            self._data.append(key)
            self._nullable.append(nullable)
            self._head_call.append(head_call)
            if key[0] == TAKEN or (key[0] in (CAT, ELSE, ALT) and self._ends_in_taken(key)):
                self._taking.add(found)
            if key[0] == CAT and key[1] in self._free:
                self._free[found] = self._free[key[1]]
            elif key[0] == ALT:
                spellings = [self._free[part] for part in key[1] if part in self._free]
                if spellings:
                    self._free[found] = min(spellings)
        return found

    def _ends_in_taken(self, key: tuple) -> bool:
        if key[0] == CAT:
            return key[2] in self._taking
        return any(p in self._taking for p in (key[1] if key[0] == ALT else key[1:]))

    def mark_free(self, term: int, need: int, spelling: int = 1) -> int:
        """Say that any text inside of a string begins a text of `term`; also of what is built on it.

        `need` bytes always complete a text of `term` that has whole characters behind it. `spelling`: 0 if
        a character may be written in any way, 1 if only in its one way.
        """
        self._free[term] = spelling
        self._free_needs[term] = need
        return term

    def free_spelling(self, term: int) -> int | None:
        """How free a term is (see `mark_free`), None if it is not."""
        return self._free.get(term)

    def free_need(self, term: int) -> int | None:
        return self._free_needs.get(term)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TooLarge(f"the constraint takes longer than {self.limits.seconds:g} s to compile")

    def nullable(self, term: int) -> bool:
        return self._nullable[term]

    def data(self, term: int) -> tuple:
        """(kind, ...) of a term; for `grammar.measure`."""
        return self._data[term]

    @property
    def count(self) -> int:
        """Of the terms that are known."""
        return len(self._data)

    # building

    def literal(self, data: bytes) -> int:
        return self._new((LITERAL, data), False) if data else EPSILON

    def byte_set(self, mask: int) -> int:
        if not mask:
            return EMPTY
        if mask & (mask - 1) == 0:
            return self.literal(bytes([mask.bit_length() - 1]))
        return self._new((SET, mask), False)

    def chars(self, ranges: cp.Ranges) -> int:
        """One code point out of `ranges`, in UTF-8."""
        found = self._charsets.get(ranges)
        if found is None:
            found = self._charsets[ranges] = self._sequences(cp.utf8_sequences(ranges))
        return found

    def chars_then(self, ranges: cp.Ranges, last: Callable[[int], int]) -> int:
        """One code point out of `ranges`; `last` makes of the bytes it ends in the term of them and the rest."""
        return self._sequences(cp.utf8_sequences(ranges), last)

    def _sequences(
        self, sequences: list[tuple[cp.ByteRange, ...]], last: Callable[[int], int] | None = None
    ) -> int:
        """Alternatives of byte sequences; `last` makes the term of the last byte and what follows it."""
        single = 0
        by_first: dict[int, list[tuple[cp.ByteRange, ...]]] = {}
        for sequence in sequences:
            mask = byte_mask(*sequence[0])
            if len(sequence) == 1:
                single |= mask
            else:
                by_first.setdefault(mask, []).append(sequence[1:])
        by_tail: dict[int, int] = {}
        for mask, tails in by_first.items():
            tail = self._sequences(tails, last)
            by_tail[tail] = by_tail.get(tail, 0) | mask
        end = (last or self.byte_set)(single)
        return self.alt([end, *(self.cat(self.byte_set(m), t) for t, m in by_tail.items())])

    def cat(self, head: int, tail: int) -> int:
        """`head`, then `tail`; a sequence as head is taken apart, so that texts of one kind are one term (free ones stay)."""
        if head == EMPTY or tail == EMPTY:
            return EMPTY
        if head == EPSILON:
            return tail
        if tail == EPSILON:
            return head
        parts = []
        data = self._data[head]
        while data[0] == CAT and head not in self._free:
            parts.append(data[1])
            head = data[2]
            data = self._data[head]
        tail = self._pair(head, tail)
        while parts:
            tail = self._pair(parts.pop(), tail)
        return tail

    def _pair(self, head: int, tail: int) -> int:
        data = self._data[head]
        if data[0] == LITERAL:
            after = self._data[tail]
            if after[0] == LITERAL:
                return self.literal(data[1] + after[1])
            if after[0] == CAT and self._data[after[1]][0] == LITERAL:
                return self._pair(self.literal(data[1] + self._data[after[1]][1]), after[2])
        nullable = self._nullable[head] and self._nullable[tail]
        call = self._head_call[head] or (self._nullable[head] and self._head_call[tail])
        return self._new((CAT, head, tail), nullable, call)

    def sequence(self, *terms: int) -> int:
        tail = EPSILON
        for term in reversed(terms):
            tail = self.cat(term, tail)
        return tail

    def alt(self, terms: Iterable[int]) -> int:
        flat: set[int] = set()
        mask = 0
        repeats = False
        for term in terms:
            data = self._data[term]
            for part in data[1] if data[0] == ALT else (term,):
                kind = self._data[part]
                if kind[0] == SET:
                    mask |= kind[1]
                elif kind[0] == LITERAL and len(kind[1]) == 1:
                    mask |= 1 << kind[1][0]
                elif part != EMPTY:
                    flat.add(part)
                    repeats |= kind[0] == REPEAT or (kind[0] == CAT and self._data[kind[1]][0] == REPEAT)
        if mask:
            flat.add(self.byte_set(mask))
        if repeats and len(flat) > 1:
            flat = self._join_counts(flat)
        if len(flat) > 1:
            flat = self._join_heads(flat)
        if len(flat) <= 1:
            return next(iter(flat), EMPTY)
        parts = tuple(sorted(flat))
        nullable = any(self._nullable[p] for p in parts)
        return self._new((ALT, parts), nullable, any(self._head_call[p] for p in parts))

    def _join_heads(self, parts: set[int]) -> set[int]:
        """xy | xz is x(y | z): what alternatives begin with alike is followed once."""
        tails: dict[int, list[int]] = {}
        count = 0
        for part in parts:
            data = self._data[part]
            if data[0] == CAT:
                tails.setdefault(data[1], []).append(data[2])
                count += 1
        if len(tails) == count or self._joining > _DEEP:
            return parts
        self._joining += 1
        kept = set(parts)
        for head, found in tails.items():
            data = self._data[head]
            if len(found) > 1 and (data[0] != REPEAT or data[3] < 0):  # counts are joined by `_join_counts`
                kept.difference_update(self._ids[CAT, head, tail] for tail in found)
                kept.add(self.cat(head, self.alt(found)))
        self._joining -= 1
        return kept

    def _join_counts(self, parts: set[int]) -> set[int]:
        """x{0,3}y | x{2,5}y is x{0,5}y, and y is x{0,0}y: keeps the number of states of nested counts down."""
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for part in parts:
            data = self._data[part]
            tail = EPSILON
            if data[0] == CAT:
                tail, data = data[2], self._data[data[1]]
            if data[0] == REPEAT:
                groups.setdefault((data[1], tail), []).append((data[2], data[3], part))
        kept = set(parts)
        for (item, tail), counts in groups.items():
            counts = list(counts)
            if tail in kept:
                counts.append((0, 0, tail))
            once = self.cat(item, tail)
            if once in kept:
                counts.append((1, 1, once))
            if len(counts) < 2:
                continue
            counts.sort(key=lambda c: c[0])
            low, high, _ = counts[0]
            merged: list[tuple[int, int]] = []
            for next_low, next_high, _ in counts[1:]:
                if high == -1 or next_low <= high + 1:
                    high = -1 if -1 in (high, next_high) else max(high, next_high)
                else:
                    merged.append((low, high))
                    low, high = next_low, next_high
            merged.append((low, high))
            kept.difference_update(c[2] for c in counts)
            kept.update(self.cat(self.repeat(item, a, b), tail) for a, b in merged)
        kept.discard(EMPTY)
        return kept

    def repeat(self, item: int, low: int, high: int) -> int:
        """`item` from `low` to `high` times; `high` -1: without end."""
        if item == EMPTY:
            return EPSILON if low == 0 else EMPTY
        if item == EPSILON or high == 0:
            return EPSILON
        if low == high == 1:
            return item
        if self._nullable[item]:
            low = 0
        data = self._data[item]
        if data[0] == REPEAT:
            inner_low, inner_high = data[2], data[3]
            if low == 0:
                gapless = inner_low <= 1
            else:
                gapless = inner_high == -1 or low == high or low * inner_high + 1 >= (low + 1) * inner_low
            if gapless:
                top = -1 if -1 in (inner_high, high) else inner_high * high
                return self.repeat(data[1], inner_low * low, top)
        return self._new((REPEAT, item, low, high), low == 0, self._head_call[item])

    def listed(self, terms: Iterable[int]) -> int:
        """`alt` of many that begin with fixed texts, as a tree of these: a byte then looks only at those that go on with it."""
        words: set[tuple[bytes, int]] = set()
        others = []
        for term in terms:
            leading = self.leading_literal(term)
            if leading is None:
                others.append(term)
            else:
                words.add(leading)
        return self.alt([*others, self._tree(sorted(words), 0)] if words else others)

    def _tree(self, words: list[tuple[bytes, int]], depth: int) -> int:
        if len(words) < _FEW or depth > _DEEP:
            return self.alt(self.cat(self.literal(w), rest) for w, rest in words)
        first, last = words[0][0], words[-1][0]
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
        shared = min(len(first), len(last)) if shared is None else shared
        options = []
        for head, group in groupby(words, key=lambda w: w[0][: shared + 1]):
            tails = [(w[shared + 1 :], rest) for w, rest in group]
            if len(head) > shared:
                options.append(self.cat(self.literal(head[shared:]), self._tree(tails, depth + 1)))
            else:  # these end where the others go on
                options += [rest for _, rest in tails]
        return self.cat(self.literal(first[:shared]), self.alt(options))

    def leading_literal(self, term: int) -> tuple[bytes, int] | None:
        """(bytes, term after them) if the texts of a term begin with fixed bytes that stand in it as such."""
        data = self._data[term]
        if data[0] == LITERAL:
            return data[1], EPSILON
        if data[0] == CAT and self._data[data[1]][0] == LITERAL:
            return self._data[data[1]][1], data[2]
        return None

    def otherwise(self, first: int, rest: int) -> int:
        """`first` or `rest`, put together only where it is visited: a list of n of these has n parts, not n * n."""
        if first == EMPTY or rest == EMPTY:
            return first if rest == EMPTY else rest
        nullable = self._nullable[first] or self._nullable[rest]
        return self._new((ELSE, first, rest), nullable, self._head_call[first] or self._head_call[rest])
