"""Numbers with bounds and divisors, as automata over their decimal spelling.

A bounded number is written without an exponent; an integer also without a fraction. So every spelling
that is accepted is in bounds, exactly, however many digits it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from grammar.byte_masks import byte_mask
from grammar.constraint_errors import TooLarge
from grammar.fsm import Fsm
from grammar.term_arena import EMPTY, EPSILON
from grammar.terms import Terms

MAX_DIVISOR = 20_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """`low_open`: above, not at, `low`."""

    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    whole: bool = False
    fractional: bool = False  # not a whole number
    divisors: tuple[Decimal, ...] = ()
    excluded: tuple[Decimal, ...] = ()

    @property
    def free(self) -> bool:
        return (
            self.low is None and self.high is None and not (self.divisors or self.excluded or self.fractional)
        )


def language(bounds: Bounds) -> Fsm:
    """The spellings of the numbers within `bounds`."""
    found = _plain(bounds.whole)
    if bounds.low is not None:
        found = found.intersection(_signed(bounds.low, bounds.low_open, above=True))
    if bounds.high is not None:
        found = found.intersection(_signed(bounds.high, bounds.high_open, above=False))
    for divisor in bounds.divisors:
        found = found.intersection(_multiples(divisor))
    if bounds.fractional:
        found = found.difference(_multiples(Decimal(1)))
    for number in bounds.excluded:
        found = found.difference(_equal(number))
    return found


def _digit(low: int = 0, high: int = 9) -> int:
    return byte_mask(0x30 + low, 0x30 + high)


class _Decimals:
    """Terms of decimal spellings in one arena."""

    def __init__(self) -> None:
        self.terms = Terms()
        self.digit = self.terms.byte_set(_digit())
        digits = self.terms.repeat(self.digit, 0, -1)
        self.natural = self.terms.alt(
            [self.terms.literal(b"0"), self.terms.cat(self.terms.byte_set(_digit(1)), digits)]
        )
        fraction = self.terms.sequence(self.terms.literal(b"."), self.digit, digits)
        self.fraction = self.terms.repeat(fraction, 0, 1)
        self.minus = self.terms.literal(b"-")

    def fsm(self, term: int) -> Fsm:
        return Fsm.of_terms(self.terms, term)

    def beyond(self, bound: Decimal, open: bool, above: bool) -> int:
        """Spellings without sign of numbers above (or below) `bound`, which is not negative."""
        terms = self.terms
        text = format(bound, "f")
        whole, _, part = text.partition(".")
        part = part.rstrip("0")
        options = [terms.cat(self._naturals(whole, above), self.fraction)]
        edge = self._fractions(part, open, above)
        if edge != EMPTY:
            options.append(terms.cat(terms.literal(whole.encode()), edge))
        return terms.alt(options)

    def _naturals(self, bound: str, above: bool) -> int:
        """Natural numbers strictly above (below) the one spelled `bound`."""
        terms = self.terms
        options = []
        count = len(bound)
        if above:
            longer = terms.repeat(self.digit, count, -1)
            options.append(terms.cat(terms.byte_set(_digit(1)), longer))
        elif count > 1:
            options.append(terms.literal(b"0"))
            options.append(terms.cat(terms.byte_set(_digit(1)), terms.repeat(self.digit, 0, count - 2)))
        for i, char in enumerate(bound):
            value = int(char)
            low, high = (value + 1, 9) if above else (1 if i == 0 and count > 1 else 0, value - 1)
            if low <= high:
                rest = terms.repeat(self.digit, count - i - 1, count - i - 1)
                options.append(
                    terms.sequence(terms.literal(bound[:i].encode()), terms.byte_set(_digit(low, high)), rest)
                )
        return terms.alt(options)

    def _fractions(self, bound: str, open: bool, above: bool) -> int:
        """Fractions (the point included, or nothing) above or below 0.`bound`."""
        terms = self.terms
        digits = terms.repeat(self.digit, 0, -1)
        zeros = terms.repeat(terms.literal(b"0"), 0, -1)
        inside: list[int] = []
        for i, char in enumerate(bound):
            value = int(char)
            low, high = (value + 1, 9) if above else (0, value - 1)
            if low <= high:
                inside.append(
                    terms.sequence(
                        terms.literal(bound[:i].encode()), terms.byte_set(_digit(low, high)), digits
                    )
                )
            if not above and i > 0:
                inside.append(terms.literal(bound[:i].encode()))  # shorter: what follows is zero
        exact = terms.cat(terms.literal(bound.encode()), zeros)
        if above:
            longer = terms.sequence(terms.literal(bound.encode()), zeros, terms.byte_set(_digit(1)), digits)
            inside.append(longer)
        if not open:
            inside.append(exact)
        pointed = terms.cat(terms.literal(b"."), self._not_empty(inside))
        bare = (not above and bool(bound)) or (not bound and not open)
        return terms.alt([pointed, *([EPSILON] if bare else [])])

    def _not_empty(self, options: list[int]) -> int:
        """The options without the empty string: a point has a digit behind it."""
        found = self.fsm(self.terms.alt(options))
        some = self.fsm(self.terms.repeat(self.digit, 1, -1))
        return self.terms.automaton(found.intersection(some).automaton())


def _plain(whole: bool) -> Fsm:
    decimals = _Decimals()
    terms = decimals.terms
    sign = terms.repeat(decimals.minus, 0, 1)
    return decimals.fsm(terms.sequence(sign, decimals.natural, EPSILON if whole else decimals.fraction))


def _signed(bound: Decimal, open: bool, above: bool) -> Fsm:
    """Numbers above (below) a bound of any sign."""
    decimals = _Decimals()
    terms = decimals.terms
    any_size = terms.cat(decimals.natural, decimals.fraction)
    negative: Callable[[int], int] = lambda size: terms.cat(decimals.minus, size)  # noqa: E731
    size = abs(bound)
    if above:
        if bound < 0:
            term = terms.alt([any_size, negative(decimals.beyond(size, open, above=False))])
        else:
            term = decimals.beyond(size, open, above=True)
            if bound == 0 and not open:
                term = terms.alt([term, negative(_zero(decimals))])
    elif bound < 0:
        term = negative(decimals.beyond(size, open, above=True))
    else:
        zero_only = open and bound == 0
        minus = decimals.beyond(Decimal(0), True, above=True) if zero_only else any_size
        term = terms.alt([negative(minus), decimals.beyond(size, open, above=False)])
    return decimals.fsm(term)


def _zero(decimals: _Decimals) -> int:
    terms = decimals.terms
    zeros = terms.repeat(terms.literal(b"0"), 1, -1)
    return terms.cat(terms.literal(b"0"), terms.repeat(terms.cat(terms.literal(b"."), zeros), 0, 1))


def _equal(number: Decimal) -> Fsm:
    """Every spelling of one number, without exponent."""
    return _signed(number, False, above=True).intersection(_signed(number, False, above=False))


def _multiples(divisor: Decimal) -> Fsm:
    """Numbers that are a whole multiple of `divisor`, which is above 0."""
    places = max(0, -int(divisor.normalize().as_tuple().exponent))
    unit = int(divisor.scaleb(places))
    if unit * (places + 2) > MAX_DIVISOR:
        raise TooLarge(f"multipleOf {divisor} needs more than {MAX_DIVISOR:,} states")
    return _remainders(unit, places)


def _remainders(unit: int, places: int) -> Fsm:
    """Digits read so far modulo `unit`; after the point, `places` digits count and more must be zeros.

    States: 0 start, 1 after the sign, then a block of `unit` remainders for the digits before the point,
    for just after the point, and for 1 .. places digits behind it (and the zeros that may follow).
    """
    blocks = places + 2
    table = np.full((2 + blocks * unit + 1, 13), -1, np.int32)
    accepting = np.zeros(len(table), np.bool_)
    trailing = len(table) - 1  # only zeros may follow

    def at(block: int, remainder: int) -> int:
        return 2 + block * unit + remainder

    for digit in range(10):
        table[0, digit] = table[1, digit] = at(0, digit % unit)
        for remainder in range(unit):
            following = (remainder * 10 + digit) % unit
            table[at(0, remainder), digit] = at(0, following)
            for block in range(1, blocks - 1):
                table[at(block, remainder), digit] = at(block + 1, following)
    table[0, 10] = 1
    for remainder in range(unit):
        table[at(0, remainder), 11] = at(1, remainder)
        whole_here = [(remainder * 10 ** (places - used)) % unit == 0 for used in range(places + 1)]
        accepting[at(0, remainder)] = whole_here[0]
        for used in range(1, places + 1):
            accepting[at(1 + used, remainder)] = whole_here[used]
        if whole_here[places]:
            table[at(1 + places, remainder), 0] = trailing
    table[trailing, 0] = trailing
    accepting[trailing] = True
    class_of = np.full(256, 12, np.uint8)
    class_of[0x30:0x3A] = np.arange(10)
    class_of[ord("-")], class_of[ord(".")] = 10, 11
    return Fsm.minimal(table, class_of, accepting)
