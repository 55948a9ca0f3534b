"""How short and how long the texts of a term are, in bytes, without exploring it.

Rules are measured until nothing changes: a rule without a shortest text can never end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from grammar.automaton_terms import Automaton
from grammar.byte_masks import CONTINUATION, bits
from grammar.term_arena import (
    ALT,
    BODY,
    CALL,
    CAT,
    ELSE,
    EMPTY,
    EPSILON,
    LITERAL,
    MEMBERS,
    REFERENCE,
    REPEAT,
    SET,
    STATE,
    STRING,
    TAKEN,
    UNLIKE,
)
from grammar.terms import Terms

INFINITE = 1 << 40


def settle(terms: Terms, term: int, known: dict[int, int], of: Callable[[int], int]) -> int:
    """`of(term)`, at most INFINITE, which reads what is `known` of the term's parts; what is missing is found first, and
    without recursion."""
    todo = [term]
    while todo:
        top = todo[-1]
        if top in known:
            todo.pop()
            continue
        try:  # nearly always all parts are known
            known[top] = min(of(top), INFINITE)
        except KeyError:
            todo.extend(p for p in parts(terms, top) if p not in known)
        else:
            todo.pop()
    return known[term]


def settle_rules(
    terms: Terms,
    rules: Sequence[int],
    values: list[int],
    known: dict[int, int],
    met: set[int],
    of: Callable[[int], int],
) -> None:
    """Bring the values of `rules` to where they no longer change, and leave in `known` only what follows from these.

    A rule comes after those it calls, so its value is final at once, or once it has been found again from itself.
    Only rules that call each other in a circle are found again until nothing changes.

    known   of terms, by the values of rules as they are
    met     where `of` notes each rule of which it reads the value
    of      the value of a rule's body
    """
    todo = [rule for rule in rules if terms.rule_body(rule) != EMPTY]
    still_open, waiting, circle = set(todo), set[int](), list[int]()

    def others(rule: int) -> set[int]:
        """Find the rule's value; the rules without a final value that it was found from. None: it is final."""
        while True:
            kept = len(known)
            met.clear()
            value = of(terms.rule_body(rule))
            changed, values[rule] = value != values[rule], value
            found = (met & still_open) - {rule}
            if not found and not (changed and rule in met):
                return found
            while len(known) > kept:
                known.popitem()  # the last ones, which follow from values that were not final
            if found:
                return found

    while todo:
        rule = todo[-1]
        calls = others(rule) if rule in still_open else set()
        if not calls:
            still_open.discard(rule)
            todo.pop()
        elif rule in waiting:
            circle.append(todo.pop())
        else:
            waiting.add(rule)
            todo += sorted(calls - waiting)
    before: list[int] = []
    while before != values:
        before = list(values)
        for rule in circle:
            others(rule)


class Measure:
    """Lengths of the terms of one arena whose rules are all defined.

    begun  what is known of the arena that this one began as a copy of
    """

    def __init__(self, terms: Terms, rules: int, begun: Begun | None = None) -> None:
        self.terms, self.begun = terms, begun
        self._known: dict[int, int] = {} if begun is None else begun.measure._known.copy()
        self._automata: dict[int, Distances] = {}
        self.rules: list[int] = [] if begun is None else list(begun.measure.rules)
        new = range(len(self.rules), rules)
        self.rules += [INFINITE] * len(new)
        self._met: set[int] = set()
        settle_rules(terms, new, self.rules, self._known, self._met, self.shortest)

    def shortest(self, term: int) -> int:
        """Bytes of the shortest text; INFINITE if there is none."""
        found = self._known.get(term)
        return settle(self.terms, term, self._known, self._of) if found is None else found

    def _of(self, term: int) -> int:
        if term == EMPTY:
            return INFINITE
        if term == EPSILON:
            return 0
        data = self.terms.data(term)
        kind = data[0]
        if kind == SET:
            return 1
        if kind == LITERAL:
            return len(data[1])
        if kind == CAT:
            return self._known[data[1]] + self._known[data[2]]
        if kind == ALT:
            return min(self._known[p] for p in data[1])
        if kind == ELSE:
            return min(self._known[data[1]], self._known[data[2]])
        if kind == REPEAT:
            return data[2] * self._known[data[1]]
        if kind in (CALL, REFERENCE):
            self._met.add(data[1])
            return self.rules[data[1]]
        if kind == STRING:
            return self._known[data[1]] + 1
        if kind == BODY:
            return data[1] + 1
        if kind == UNLIKE:
            return 1 if data[1] else 2
        if kind == MEMBERS:
            return self._members(data[1], data[2], data[3])
        if kind == TAKEN:  # what is left is counted where it is known
            return 0
        assert kind == STATE
        return self.distances(data[1]).shortest(data[2], data[3])

    def _members(self, index: int, left: int, count: int) -> int:
        """The required members, as many others as the least number asks for, commas, and the end."""
        order = self.terms.order_of(index)
        comma = self._known[order.comma]
        required = [self._known[order.members[i]] for i in bits(left & order.needed)]
        more = max(order.low - count - len(required), 0)
        optional: list[int] = []
        if more:
            optional = [self._known[order.members[i]] for i in bits(left & ~order.needed)]
            if self._known[order.other] < INFINITE:
                optional += [self._known[order.other]] * more
        chosen = required + sorted(optional)[:more]
        commas = max(len(chosen) - (0 if count else 1), 0) * comma
        return sum(chosen) + commas + self._known[order.end]

    def distances(self, index: int) -> Distances:
        """Of an embedded automaton."""
        found = self._automata.get(index)
        if found is None:
            found = self._automata[index] = Distances(self.terms.automaton_of(index))
        return found

    def longest(self, term: int) -> int | None:
        """Bytes of the longest text; None if there is no bound."""
        return _Longest(self.terms).of(term)

    @cached_property
    def endless_rules(self) -> list[int]:
        """Rules that no finite text matches."""
        return [rule for rule, shortest in enumerate(self.rules) if shortest >= INFINITE]


@dataclass(frozen=True, eq=False)
class Begun:
    """An arena that others begin as copies of, in which `followed` were followed to their last bytes. Nobody adds to it."""

    terms: Terms
    followed: tuple[int, ...]
    measure: Measure


class Distances:
    """Bytes to acceptance in an embedded automaton, from each state and each count of characters.

    Counts far from both bounds are alike, so few rows are computed however large the bounds are.
    """

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        special = sum(1 << b for b in automaton.spelled)
        edges: list[tuple[int, int, int, bool]] = []
        for state, row in enumerate(automaton.rows):
            for mask, goal in row:
                for part, begins in ((mask & CONTINUATION, False), (mask & ~CONTINUATION, True)):
                    if part & ~special:
                        edges.append((state, goal, 1, begins))
                    elif part:
                        length = min(len(t) for b, t in automaton.spelled.items() if part >> b & 1)
                        edges.append((state, goal, length, begins))
        self._edges = np.array(edges, np.int64).reshape(-1, 4)
        self._rows: dict[int, np.ndarray] = {}
        self._usual = self._row(None, True)
        if automaton.fewest:
            self._fill()

    def shortest(self, state: int, count: int) -> int:
        row = self._rows.get(count)
        return int((self._usual if row is None else row)[state])

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows, states]: distances; int32 [counts]: the row of each count, that of the last for all beyond."""
        counts = sorted(self._rows)
        row_of = np.zeros(counts[-1] + 2 if counts else 1, np.int32)
        row_of[counts] = np.arange(1, len(counts) + 1)
        return np.stack([self._usual, *(self._rows[c] for c in counts)]), row_of

    @cached_property
    def _farthest(self) -> np.ndarray:
        table, row_of = self.table
        most = np.where(table < INFINITE, table, 0).max(axis=1)[row_of]
        return np.maximum.accumulate(most[::-1])[::-1]

    def farthest(self, count: int) -> int:
        """The largest distance of a text that can be finished, after `count` or more characters."""
        return int(self._farthest[min(count, len(self._farthest) - 1)])

    def _row(self, after: np.ndarray | None, may_end: bool) -> np.ndarray:
        """Distances where the next character leads to the distances `after` (None: to these ones)."""
        source, goal, weight, begins = self._edges.T
        distance = np.where(np.array(self.automaton.accepting) & may_end, 0, INFINITE)
        while True:
            beyond = distance if after is None else after
            near = distance.copy()
            np.minimum.at(near, source, weight + np.where(begins == 1, beyond[goal], distance[goal]))
            near = np.minimum(near, INFINITE)
            if (near == distance).all():
                return distance
            distance = near

    def _fill(self) -> None:
        low, high = self.automaton.low, self.automaton.high
        after = self._usual
        count = low - 1
        if high >= 0:
            after = np.full(len(self.automaton.accepting), INFINITE)
            count = high
            while count >= low:
                row = self._row(after, True)
                if count < high and (row == after).all():
                    self._usual = row
                    break
                self._rows[count] = after = row
                count -= 1
            count = low - 1
        while count >= 0:
            self._rows[count] = after = self._row(after, False)
            count -= 1


class _Longest:
    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.known: dict[int, int | None] = {EMPTY: 0, EPSILON: 0}

    def of(self, term: int, depth: int = 0) -> int | None:
        if term in self.known:
            return self.known[term]
        if depth > 400:
            return None
        self.known[term] = None  # a rule inside of itself has no bound
        self.known[term] = self._of(term, depth + 1)
        return self.known[term]

    def _of(self, term: int, depth: int) -> int | None:
        data = self.terms.data(term)
        kind = data[0]
        if kind == SET:
            return 1
        if kind == LITERAL:
            return len(data[1])
        if kind in (CAT, ALT, ELSE):
            parts = []
            for part in data[1] if kind == ALT else data[1:]:
                length = self.of(part, depth)
                if length is None:
                    return None
                parts.append(length)
            return sum(parts) if kind == CAT else max(parts)
        if kind == REPEAT:
            inner = self.of(data[1], depth)
            return None if inner is None or data[3] < 0 else inner * data[3]
        if kind in (CALL, REFERENCE):
            return self.of(self.terms.rule_body(data[1]), depth)
        if kind == MEMBERS:
            order = self.terms.order_of(data[1])
            lengths = [self.of(member, depth) for member in order.members]
            known = [n for n in lengths if n is not None]
            if order.other != EMPTY or len(known) < len(lengths):
                return None
            return sum(known) + len(known) * (self.of(order.comma) or 0) + (self.of(order.end) or 0)
        if kind == STRING:
            high = self.terms.data(data[1])[2]
            return None if high < 0 else 12 * high + 2  # a character is at most two \\u escapes
        if kind == STATE and data[2] == 0 and data[3] == 0:
            automaton = self.terms.automaton_of(data[1])
            if automaton.high >= 0:
                return automaton.high * max(4, *(len(t) for t in automaton.spelled.values()), 1)
            return self._automaton(data[1])
        return None

    def _automaton(self, index: int) -> int | None:
        automaton = self.terms.automaton_of(index)
        longest_spelling = max((len(t) for t in automaton.spelled.values()), default=1)
        degree = [len(row) for row in automaton.rows]
        sources: list[list[int]] = [[] for _ in automaton.rows]
        for state, row in enumerate(automaton.rows):
            for _, goal in row:
                sources[goal].append(state)
        order = [s for s, d in enumerate(degree) if d == 0]
        length = [0] * len(degree)
        for state in order:
            for source in sources[state]:
                length[source] = max(length[source], length[state] + longest_spelling)
                degree[source] -= 1
                if degree[source] == 0:
                    order.append(source)
        return length[0] if len(order) == len(degree) else None


def parts(terms: Terms, term: int) -> tuple[int, ...]:
    """The terms that a term is made of, those of rules not."""
    data = terms.data(term)
    kind = data[0]
    if kind in (CAT, ELSE):
        return (data[1], data[2])
    if kind == ALT:
        return tuple(data[1])
    if kind in (REPEAT, STRING):
        return (data[1],)
    if kind == MEMBERS:
        order = terms.order_of(data[1])
        return (*order.members, order.other, order.comma, order.end)
    return ()
