"""What objects may still hold where their members come in any order: sets beside the states of a machine.

States of members' names are the same whatever is left; each knows its endings: the members it can lead to, with the bytes
and tokens to there. A set says which of them may come, so a byte is followed if one of them may, and a new set is a mask
and a row of numbers, made by the machine's loops (`pushdown_loops.set_of`).
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakMethod

import numpy as np

from grammar import pushdown_loops as loops
from grammar.constraint_errors import TooLarge
from grammar.measure import INFINITE, Measure, parts
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
        self.endings = np.zeros((256, 3), np.int32)
        self.orders = np.zeros((4, 10), np.int64)
        self.members = np.zeros((64, 4), np.int64)
        self.sets = np.zeros((64, 5), np.int64)
        self.masks = np.zeros(256, np.int64)
        self.slots = np.full(256, -1, np.int32)
        self.used_endings = self._used_members = 0
        self._numbers: dict[int, int] = {}  # of the orders, from 1: set 0 and order 0 are none
        self._indices: list[int] = [-1]
        self._endings: dict[int, Endings] = {}
        self._others: dict[int, bool] = {}  # of sets

    def _moved(self) -> None:
        if (told := self._told()) is not None:
            told()

    def number_of(self, index: int) -> int | None:
        """The row of an order in the tables; None if it has none yet."""
        return self._numbers.get(index)

    def add(self, index: int, begin: int, more: int) -> int:
        """Give an order a row; `begin` and `more` are the states before its first and before its other members."""
        order = self.terms.order_of(index)
        number = self._numbers[index] = len(self._indices)
        self._indices.append(index)
        count = len(order.members)
        while number >= len(self.orders):
            self.orders = _doubled(self.orders)
        while self._used_members + count + 2 > len(self.members):
            self.members = _doubled(self.members)
        lengths, tokens = self._measure.shortest, self._spelled.enough
        words, cap = (count + 2 + 63) // 64, order.cap
        end = (lengths(order.end), tokens(order.end))
        self.orders[number] = (
            begin, more, count, words, order.low, order.high, cap, self._used_members, *end
        )  # fmt: skip
        gives = (lengths(order.comma), tokens(order.comma))
        for i, member in enumerate((*order.members, order.other)):
            n_bytes = lengths(member)
            row = (n_bytes < INFINITE, order.needed >> i & 1, n_bytes + gives[0], tokens(member) + gives[1])
            self.members[self._used_members + i] = row
        self._used_members += count + 2
        self._moved()
        return number

    def set_of(self, machine: Callable[[], int], used: np.ndarray, number: int, left: int, came: int) -> int:
        """The number of the set of the members in the mask `left` after `came` members."""
        words = int(self.orders[number, loops.WORDS])
        data = np.frombuffer(left.to_bytes(words * 8, "little"), np.int64)
        while True:
            at = int(used[loops.MASK_WORDS])
            if at + 2 * words <= len(self.masks):
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
        most = 2 * int(self.orders[:, loops.WORDS].max())
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

    def others_may_come(self, held: int) -> bool:
        """May a member that is not declared come next, with this set?"""
        found = self._others.get(held)
        if found is None:
            found = self._others[held] = self._others_may_come(held)
        return found

    def _others_may_come(self, held: int) -> bool:
        order, at = int(self.sets[held, loops.OF_ORDER]), int(self.sets[held, loops.MASKS])
        member = int(self.orders[order, loops.MEMBERS])
        word = int(self.masks[at + int(self.orders[order, loops.WORDS]) + (member >> 6)])
        return bool(word >> (member & 63) & 1)

    def must_come(self, held: int) -> tuple[int, int]:
        """Bytes and tokens of the members of a set that must come and the end, commas included."""
        return int(self.sets[held, loops.MUST_BYTES]), int(self.sets[held, loops.MUST_TOKENS])

    def endings_at(self, term: int) -> tuple[int, int]:
        """(where they begin in the table, how many) of a term's endings."""
        found = self.endings_of(term)
        first = self.used_endings
        if first + len(found) > self._limits.terms:
            raise TooLarge(f"objects in any order need more than {self._limits.terms:,} rows of names")
        while first + len(found) > len(self.endings):
            self.endings = _doubled(self.endings)
            self._moved()
        rows = [(m, min(b, loops.FAR), min(t, loops.FAR)) for m, (b, t) in found.items()]
        rows.sort(
            key=lambda row: -row[0]
        )  # other names and the end first: nearly always one of them may come
        self.endings[first : first + len(rows)] = np.array(rows, np.int32).reshape(-1, 3)
        self.used_endings += len(rows)
        return first, len(rows)

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
