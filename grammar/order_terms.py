"""Members in any order as terms: a term for each set of members that are left, made where it is visited."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from grammar.term_arena import ALT, CAT, ELSE, EMPTY, MEMBERS, TAKEN, Limits, TermArena

_MOST_JOINED = 32


@dataclass(frozen=True, slots=True)
class AnyOrder:
    """Members in any order, each at most once, with `comma` between them and `end` after them.

    `other` may stand any number of times; `low` to `high` (-1: any number of) members in all.
    """

    members: tuple[int, ...]
    needed: int  # mask of the members that must come
    other: int
    comma: int
    end: int
    low: int = 0
    high: int = -1

    @property
    def beside(self) -> bool:
        """Can what is left be kept beside the state? So it can where the least number is one of required members, or one."""
        return self.low <= 1

    @property
    def words(self) -> int:
        """Of 64 bits, of a mask of the members, the other ones and the end."""
        return (len(self.members) + 2 + 63) // 64

    @property
    def cap(self) -> int:
        """Counts from here on are alike."""
        return self.high if self.high >= 0 else max(self.low, 1)

    def required(self, left: int) -> int:
        """How many of the members in the mask `left` must come."""
        return (left & self.needed).bit_count()

    def may_come(self, left: int, after: int) -> bool:
        """Can it still end with the members in `left` if there are `after` members then?"""
        if self.high >= 0 and after + self.required(left) > self.high:
            return False
        return self.other != EMPTY or after + left.bit_count() >= self.low


class OrderTerms(TermArena):
    """Terms that begin with a member out of an `AnyOrder`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._orders: list[AnyOrder] = []
        self._joined: dict[tuple[int, ...], int] = {}
        self._joins: list[tuple[int, ...]] = []

    def any_order(self, order: AnyOrder) -> int:
        every = (1 << len(order.members)) - 1
        if not order.may_come(every, 0):
            return EMPTY
        self._orders.append(order)
        return self._members(len(self._orders) - 1, every, 0)

    def order_of(self, index: int) -> AnyOrder:
        return self._orders[index]

    def _members(self, index: int, left: int, count: int) -> int:
        return self._new((MEMBERS, index, left, min(count, self._orders[index].cap)), False, True)

    def _next_member(self, index: int, left: int, count: int) -> int:
        """What can follow when the members in `left` have not come."""
        order = self._orders[index]
        after = count + 1
        options = []
        for i, member in enumerate(order.members):
            rest = left & ~(1 << i)
            if left >> i & 1 and order.may_come(rest, after):
                options.append(self.cat(member, self._members(index, rest, after)))
        if order.other != EMPTY and order.may_come(left, after):
            options.append(self.cat(order.other, self._members(index, left, after)))
        end = order.end if not order.required(left) and count >= order.low else EMPTY
        return self._one_of(order, options, [end], count == 0)

    def _one_of(self, order: AnyOrder, options: list[int], ends: list[int], first: bool) -> int:
        if not first:
            options = [self.cat(order.comma, self.listed(options))]
        return self.listed([*options, *ends])

    def join(self, orders: tuple[int, ...]) -> int:
        """The number of one order, or of several as alternatives to each other.

        Their members are numbered together: those of an alternative from a multiple of 64 on, then its other members and
        its end.
        """
        found = self._joined.get(orders)
        if found is None:
            found = self._joined[orders] = len(self._joins)
            self._joins.append(orders)
        return found

    def joined(self, number: int) -> tuple[int, ...]:
        """The orders that `join` gave this number."""
        return self._joins[number]

    def first_words(self, number: int) -> list[int]:
        """Of a mask of all members, where each alternative begins."""
        words = (self._orders[i].words for i in self._joins[number][:-1])
        return list(accumulate(words, initial=0))

    def any_left(self, number: int, first: bool) -> int:
        """What can follow in what `join` made, whatever is left: all members, each with a `taken` behind it, which depends
        on what is left.

        first  no member has come
        """
        orders = [self._orders[i] for i in self._joins[number]]
        options, ends = [], []
        for order, word in zip(orders, self.first_words(number), strict=True):
            count = len(order.members)
            takes = [self.taken(number, 64 * word + i) for i in range(count + 2)]
            options += [self.cat(member, then) for member, then in zip(order.members, takes, strict=False)]
            options.append(self.cat(order.other, takes[count]))
            ends.append(self.cat(order.end, takes[count + 1]))
        return self._one_of(orders[0], options, ends, first)

    def taken(self, number: int, member: int) -> int:
        """What follows after a member of what `join` made: the members that were left of its alternative, without this one."""
        return self._new((TAKEN, number, member), False, True)

    def is_taken(self, term: int) -> bool:
        """Is it a `taken`, or several as alternatives?"""
        data = self._data[term]
        return data[0] == TAKEN or (data[0] == ALT and all(self._data[p][0] == TAKEN for p in data[1]))

    def over(self, term: int) -> int:
        """The `taken`s to which a term leads without a byte, as alternatives; EMPTY if there are none."""
        data = self._data[term]
        if data[0] == TAKEN:
            return term
        if data[0] == CAT:
            return self.over(data[2]) if self._nullable[data[1]] else EMPTY
        if data[0] not in (ALT, ELSE):
            return EMPTY
        return self.alt(self.over(p) for p in (data[1] if data[0] == ALT else data[1:]))

    def takes(self, term: int) -> bool:
        """Does it end in a `taken`?"""
        return term in self._taking

    def members_left(self, term: int) -> tuple[int, int, int] | None:
        """(number of what `join` made, mask of the members that are left, how many came) if that is all of `term` and can be kept
        beside the state."""
        data = self._data[term]
        parts = [self._data[p] for p in data[1]] if data[0] == ALT else [data]
        if len(parts) > _MOST_JOINED or any(p[0] != MEMBERS for p in parts):
            return None
        indices = tuple(p[1] for p in parts)
        orders = tuple(self._orders[i] for i in indices)
        came, cap = parts[0][3], max(o.cap for o in orders)
        alike = all(p[3] == came and (came == 0 or o.cap == cap) for p, o in zip(parts, orders, strict=True))
        if not alike or len(set(indices)) < len(indices) or not all(o.beside for o in orders):
            return None
        number, left = self.join(indices), 0
        for order, word, part in zip(orders, self.first_words(number), parts, strict=True):
            count = len(order.members)
            left |= (part[2] | (order.other != EMPTY) << count | 1 << count + 1) << 64 * word
        return number, left, came
