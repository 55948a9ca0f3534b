"""Members in any order as terms: a term for each set of members that are left, made where it is visited."""

from __future__ import annotations

from dataclasses import dataclass

from grammar.term_arena import EMPTY, MEMBERS, TAKEN, Limits, TermArena


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
    def end_index(self) -> int:
        """What `Terms.taken` calls the end; the number before it is that of other members."""
        return len(self.members) + 1

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
        return self._one_of(order, options, end, count == 0)

    def _one_of(self, order: AnyOrder, options: list[int], end: int, first: bool) -> int:
        if not first:
            options = [self.cat(order.comma, self.listed(options))]
        return self.listed([*options, end])

    def any_left(self, index: int, first: bool) -> int:
        """What can follow, whatever is left: all members, each with a `taken` behind it, which depends on what is left.

        first  no member has come
        """
        order = self._orders[index]
        options = [self.cat(member, self.taken(index, i)) for i, member in enumerate(order.members)]
        if order.other != EMPTY:
            options.append(self.cat(order.other, self.taken(index, len(order.members))))
        return self._one_of(order, options, self.cat(order.end, self.taken(index, order.end_index)), first)

    def taken(self, index: int, member: int) -> int:
        """What follows after a member of an order: the members that were left, without this one.

        member  its number; one more than the last for another one, and one more for the end
        """
        return self._new((TAKEN, index, member), False, True)

    def takes(self, term: int) -> bool:
        """Does it end in a `taken`?"""
        return term in self._taking

    def members_left(self, term: int) -> tuple[int, int, int] | None:
        """(number of the order, mask of the members that are left, how many came) if that is all of `term`."""
        data = self._data[term]
        return (data[1], data[2], data[3]) if data[0] == MEMBERS else None
