"""What objects may still hold where their members come in any order: sets beside the states of a machine.

States of members' names are the same whatever is left; each knows its endings: the members it can lead to, with the bytes
and tokens to there. A set says which of them may come, so a byte is followed if one of them may, and a new set is a mask
and a row of numbers, made by the machine's loops (`pushdown_loops.set_of`). Objects that are alternatives to each other are
one order with a set for all; a member leads on with those whose member it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from weakref import WeakMethod

import numpy as np

from grammar import pushdown_loops as loops
from grammar.constraint_errors import TooLarge
from grammar.measure import INFINITE, Measure, parts
from grammar.order_terms import AnyOrder
from grammar.term_arena import ALT, CAT, ELSE, TAKEN, Limits
from grammar.token_measure import TokenMeasure

Endings = dict[int, tuple[int, int]]  # members by number, with bytes and tokens to there

_MAX_WORDS = 1 << 24  # of the masks of all sets of a machine


class OrderTables:
    """The tables of orders, sets and endings of one machine; `moved` is called after one was made larger."""

    def __init__(
        self, measure: Measure, spelled: TokenMeasure, limits: Limits, moved: Callable[[], None]
    ) -> None:
        self.terms = measure.terms
        self._measure, self._spelled, self._limits = measure, spelled, limits
        self._told = WeakMethod(moved)  # no cycle: a machine's memory is free once nobody has it
        self.endings = np.zeros((256, 5), np.int32)
        self.orders = np.zeros((4, 8), np.int64)
        self.fewer = np.zeros((4, 3), np.int64)
        self.alternatives = np.zeros((4, 7), np.int64)
        self.members = np.zeros((64, 3), np.int64)
        self.sets = np.zeros((64, 5), np.int64)
        self.masks = np.zeros(256, np.int64)
        self.slots = np.full(256, -1, np.int32)
        self.used_endings = self._used_members = self._used_alternatives = 0
        self._used_fewer = 1
        self._numbers: dict[int, int] = {}  # of the orders, from 1: set 0 and order 0 are none
        self._first: dict[int, int] = {}  # alternative of an order
        self._endings: dict[int, Endings] = {}
        self._ways: dict[int, list[tuple[int, int, int]]] = {}

    def _moved(self) -> None:
        if (told := self._told()) is not None:
            told()

    def number_of(self, joined: int) -> int | None:
        """The row of an order (`Terms.joined`) in the tables; None if it has none yet."""
        return self._numbers.get(joined)

    def begin(self, joined: int) -> None:
        """Give an order's alternatives their rows, to which endings refer."""
        self._first[joined] = self._used_alternatives
        orders = [self.terms.order_of(i) for i in self.terms.joined(joined)]
        for order, word in zip(orders, self.terms.first_words(joined), strict=True):
            self._add_alternative(order, word)

    def add(self, joined: int, begin: int, more: int) -> int:
        """Give an order that was begun a row; `begin` and `more` are the states before its first and before its other members."""
        orders = [self.terms.order_of(i) for i in self.terms.joined(joined)]
        number = self._numbers[joined] = len(self._numbers) + 1
        words, parts = sum(o.words for o in orders), len(orders)
        while number >= len(self.orders):
            self.orders = _doubled(self.orders)
        cap = max(o.cap for o in orders)
        self.orders[number] = begin, more, words, 2 * (words + parts), cap, self._first[joined], parts, 0
        self._moved()
        return number

    def add_fewer(self, number: int, alive: int, goal: int) -> None:
        """Say that `goal` is the order of those alternatives of an order that are left."""
        row = self._used_fewer
        if row == len(self.fewer):
            self.fewer = _doubled(self.fewer)
        self.fewer[row] = alive, goal, self.orders[number, loops.FEWER]
        self.orders[number, loops.FEWER] = row
        self._used_fewer += 1
        self._moved()

    def _add_alternative(self, order: AnyOrder, word: int) -> None:
        count, at, first = len(order.members), self._used_alternatives, self._used_members
        if at == len(self.alternatives):
            self.alternatives = _doubled(self.alternatives)
        while first + count + 2 > len(self.members):
            self.members = _doubled(self.members)
        lengths, tokens = self._measure.shortest, self._spelled.enough
        end = (lengths(order.end), tokens(order.end))
        self.alternatives[at] = word, count, order.low, order.high, first, *end
        gives = (lengths(order.comma), tokens(order.comma))
        for i, member in enumerate(order.members):
            if order.needed >> i & 1:
                self.members[first + i] = 1, lengths(member) + gives[0], tokens(member) + gives[1]
        self._used_members += count + 2
        self._used_alternatives += 1

    def set_of(self, machine: Callable[[], int], used: np.ndarray, number: int, left: int, came: int) -> int:
        """The number of the set of the members in the mask `left` after `came` members."""
        words, size = (int(self.orders[number, c]) for c in (loops.WORDS, loops.SIZE))
        data = np.frombuffer(left.to_bytes(words * 8, "little"), np.int64)
        while True:
            at = int(used[loops.MASK_WORDS])
            if at + size <= len(self.masks):
                self.masks[at : at + words] = data
                found = int(loops.set_of(machine(), number, came))
                if found >= 0:
                    return found
            self.grow(used)

    def grow(self, used: np.ndarray) -> None:
        """Room for more sets. Raises TooLarge at the limits."""
        if used[loops.SETS] >= self._limits.states or used[loops.MASK_WORDS] > _MAX_WORDS:
            raise TooLarge(
                f"objects in any order were left with more than {int(used[loops.SETS]):,} different sets of members; "
                "in declared order there are none"
            )
        if used[loops.SETS] * 2 >= len(self.sets):
            self.sets = _doubled(self.sets)
        self.slots = np.full(len(self.sets) * 4, -1, np.int32)
        most = int(self.orders[:, loops.SIZE].max())
        while used[loops.MASK_WORDS] + max(most, int(used[loops.MASK_WORDS])) >= len(self.masks):
            self.masks = _doubled(self.masks)
        self._place_sets(int(used[loops.SETS]))
        self._moved()

    def _place_sets(self, count: int) -> None:
        """Put all sets into the new table of slots."""
        for number in range(1, count):
            order, came, at = (int(self.sets[number, c]) for c in (loops.OF_ORDER, loops.CAME, loops.MASKS))
            words = int(self.orders[order, loops.WORDS])
            loops.place_set(self.slots, self.masks, at, words, order, came, number)

    def note_free(self, term: int) -> None:
        """Find ahead of `free_spelling` which endings of a term that ends in a `taken` leave it free."""
        data = self.terms.data(term)
        free = [(self.terms.free_spelling(p), p) for p in (data[1] if data[0] == ALT else (term,))]
        self._ways[term] = sorted(
            (s, m >> 6, m & 63) for s, p in free if s is not None for m in self.endings_of(p)
        )

    def free_spelling(self, term: int, held: int) -> int | None:
        """How free a term that was noted is with this set (see `Terms.mark_free`); None if it is not."""
        may = int(self.sets[held, loops.MAY])
        for spelling, word, bit in self._ways[term]:
            if int(self.masks[may + word]) >> bit & 1:
                return spelling
        return None

    def must_come(self, held: int) -> tuple[int, int]:
        """Bytes and tokens, at most, of the members of a set that must come and the end, commas included."""
        order, at = self.sets[held, [loops.OF_ORDER, loops.MUSTS]].tolist()
        musts = self.masks[at : at + 2 * int(self.orders[order, loops.PARTS])].tolist()
        return max(musts[::2]), max(musts[1::2])

    def farthest(self, term: int) -> tuple[int, int]:
        """Bytes and tokens of the farthest ending of a term that ends in a `taken`."""
        found = self.endings_of(term).values()
        return max(b for b, _ in found), max(t for _, t in found)

    def endings_at(self, term: int) -> tuple[int, int]:
        """(where they begin in the table, how many) of a term's endings."""
        found = self.endings_of(term)
        first = self.used_endings
        if first + len(found) > self._limits.terms:
            raise TooLarge(f"objects in any order need more than {self._limits.terms:,} rows of names")
        while first + len(found) > len(self.endings):
            self.endings = _doubled(self.endings)
            self._moved()
        rows = []
        if found:
            joined = self._joined(term)
            words, begin = self.terms.first_words(joined), self._first[joined]
            for m, (n_bytes, n_tokens) in found.items():
                part = bisect_right(words, m >> 6) - 1
                own, of = m - 64 * words[part], self.alternatives[begin + part]
                row = int(of[loops.ROWS]) + own if own <= of[loops.MEMBERS] else -1
                rows.append((m, min(n_bytes, loops.FAR), min(n_tokens, loops.FAR), part, row))
        rows.sort(
            key=lambda row: -row[0]
        )  # other names and the end first: nearly always one of them may come
        self.endings[first : first + len(rows)] = np.array(rows, np.int32).reshape(-1, 5)
        self.used_endings += len(rows)
        return first, len(rows)

    def _joined(self, term: int) -> int:
        """The order to which the `taken`s belong in which a term ends."""
        data = self.terms.data(term)
        while data[0] != TAKEN:
            below = data[1] if data[0] == ALT else data[1:]
            data = self.terms.data(next(p for p in reversed(below) if self.terms.takes(p)))
        return int(data[1])

    def endings_of(self, term: int) -> Endings:
        """Of a term that ends in a `taken`; none of any other."""
        if not self.terms.takes(term):
            return {}
        todo = [term]
        while todo:
            top = todo[-1]
            missing = [p for p in parts(self.terms, top) if self.terms.takes(p) and p not in self._endings]
            if missing:
                todo += missing
                continue
            self._endings[top] = self._of(todo.pop())
        return self._endings[term]

    def _of(self, term: int) -> Endings:
        data = self.terms.data(term)
        if data[0] == TAKEN:
            return {data[2]: (0, 0)}
        if data[0] == CAT:
            n_bytes, n_tokens = self._measure.shortest(data[1]), self._spelled.enough(data[1])
            return {m: (b + n_bytes, t + n_tokens) for m, (b, t) in self._endings[data[2]].items()}
        assert data[0] in (ALT, ELSE)
        found: Endings = {}
        for part in data[1] if data[0] == ALT else data[1:]:
            for member, (n_bytes, n_tokens) in self._endings[part].items():
                known = found.get(member, (INFINITE, 0))
                if n_bytes < known[0]:
                    found[member] = (n_bytes, n_tokens)
                elif n_bytes == known[0]:
                    found[member] = (n_bytes, max(n_tokens, known[1]))
        return found


def _doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros_like(array)])
