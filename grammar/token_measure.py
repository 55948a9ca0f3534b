"""How many tokens are enough for the shortest text of a term.

Of the texts with the fewest bytes (the ways to the end that machines take are such texts) the one that takes the most tokens,
where fixed text is spelled with as few tokens as it takes and every other byte is a token.
"""

from __future__ import annotations

from collections.abc import Callable

from grammar.byte_masks import bits
from grammar.measure import INFINITE, Measure, settle, settle_rules
from grammar.term_arena import (
    ALT,
    CALL,
    CAT,
    ELSE,
    EMPTY,
    EPSILON,
    LITERAL,
    MEMBERS,
    REFERENCE,
    REPEAT,
    STRING,
)


class TokenMeasure:
    """Of the terms that `measure` knows; `spelled` says how many tokens spell a text.

    begun  that of the arena that this one began as a copy of
    """

    def __init__(
        self, measure: Measure, spelled: Callable[[bytes], int], begun: TokenMeasure | None = None
    ) -> None:
        self.measure, self.terms, self.spelled = measure, measure.terms, spelled
        self._known: dict[int, int] = {} if begun is None else begun._known.copy()
        self.rules: list[int] = [] if begun is None else list(begun.rules)
        finite = [r for r in range(len(self.rules), len(measure.rules)) if measure.rules[r] < INFINITE]
        # values only grow, and are no more tokens than bytes
        self.rules += [0] * (len(measure.rules) - len(self.rules))
        self._met: set[int] = set()
        settle_rules(self.terms, finite, self.rules, self._known, self._met, self.enough)

    def enough(self, term: int) -> int:
        """Tokens; INFINITE if there is no text."""
        found = self._known.get(term)
        return settle(self.terms, term, self._known, self._of) if found is None else found

    def _of(self, term: int) -> int:
        known, shortest = self._known, self.measure.shortest
        if term in (EMPTY, EPSILON):
            return INFINITE if term == EMPTY else 0
        data = self.terms.data(term)
        kind = data[0]
        if kind == LITERAL:
            return self.spelled(data[1])
        if kind == CAT:
            return known[data[1]] + known[data[2]]
        if kind in (ALT, ELSE):
            options = data[1] if kind == ALT else data[1:3]
            least = shortest(term)
            counts = [known[p] for p in options]  # all of them, so that what is missing is found
            return max((n for n, p in zip(counts, options, strict=True) if shortest(p) == least), default=0)
        if kind == REPEAT:
            return data[2] * known[data[1]]
        if kind in (CALL, REFERENCE):
            self._met.add(data[1])
            return self.rules[data[1]]
        if kind == STRING:
            return known[data[1]] + 1
        if kind == MEMBERS:
            return self._members(data[1], data[2], data[3])
        return shortest(term)

    def _members(self, index: int, left: int, count: int) -> int:
        order, known, shortest = self.terms.order_of(index), self._known, self.measure.shortest
        required = [order.members[i] for i in bits(left & order.needed)]
        more = max(order.low - count - len(required), 0)
        optional: list[int] = []
        if more:
            optional = [order.members[i] for i in bits(left & ~order.needed)]
            if shortest(order.other) < INFINITE:
                optional += [order.other] * more
            optional.sort(key=lambda p: (shortest(p), -known[p]))
        chosen = required + optional[:more]
        commas = max(len(chosen) - (0 if count else 1), 0)
        return sum(known[p] for p in chosen) + commas * known[order.comma] + known[order.end]
