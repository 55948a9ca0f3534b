"""Terms explored one byte at a time.

`arcs(term)` says, for each byte, which term the rest of the text must match: the term is the state of an
automaton that is only built where it is visited.

A `call` is a rule that may call itself (an object in an object). Where the text enters a rule, an arc has
`pushes`: the terms that must match after the rule has ended, innermost first. So a stack of terms is the
state, and recursion needs no infinite automaton. Rules must end where they can end (they match no text
that begins with another text they match, unless what follows the call never continues it).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

from grammar.automaton_terms import AutomatonTerms
from grammar.constraint_errors import TooLarge
from grammar.order_terms import OrderTerms
from grammar.string_terms import StringTerms
from grammar.term_arena import (
    ALT,
    BODY,
    CALL,
    CAT,
    DEFAULT_LIMITS,
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
    UNLIKE,
    Arc,
    Limits,
)


class Terms(StringTerms, OrderTerms, AutomatonTerms):
    """All kinds of terms, and where each byte leads from them."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._rules: list[int] = []
        self._own_rules: dict[int, int] = {}
        self._arcs: dict[int, tuple[Arc, ...]] = {EMPTY: (), EPSILON: ()}

    def copy(self, limits: Limits) -> Terms:
        """An arena of its own that begins with all that is in this one."""
        other = Terms(limits)
        for name, value in vars(self).items():
            if name not in ("limits", "deadline"):
                setattr(other, name, copy(value))
        return other

    def rule(self) -> int:
        """A new rule, to be given its body by `define`."""
        self._rules.append(EMPTY)
        return len(self._rules) - 1

    def define(self, rule: int, body: int) -> None:
        if body == EMPTY or self._nullable[body]:
            raise ValueError("a rule must match something, and not the empty string")
        self._rules[rule] = body

    def call(self, rule: int) -> int:
        return self._new((CALL, rule), False, True)

    def on_its_own(self, term: int) -> int:
        """`term` as a rule: its states are then the same wherever it stands, since what follows is on the stack."""
        if term == EMPTY or self._data[term][0] in (CALL, STRING):
            return term
        found = self._own_rules.get(term)
        if found is None:
            rule = self.rule()
            self.define(rule, term)
            found = self._own_rules[term] = self.call(rule)
        return found

    def define_reference(self, rule: int, body: int) -> None:
        """Give a rule that only `reference` uses its body; it may match the empty string, and end before it has to."""
        self._rules[rule] = body

    def reference(self, rule: int, nullable: bool) -> int:
        """A rule put in where it stands: no stack, so it needs no sure end. It must not begin with itself."""
        return self._new((REFERENCE, rule), nullable, True)

    @property
    def rule_count(self) -> int:
        return len(self._rules)

    def rule_body(self, rule: int) -> int:
        """EMPTY while the rule is not defined."""
        return self._rules[rule]

    # exploring

    def arcs(self, term: int) -> tuple[Arc, ...]:
        """Where each byte leads, masks disjoint."""
        found = self._arcs.get(term)
        if found is None:
            found = self._arcs[term] = tuple(self._merge(self._arcs_then(term, EPSILON)))
        return found

    def _arcs_then(self, term: int, tail: int) -> list[Arc]:
        """The arcs of `term` followed by `tail` (without those that skip `term`), perhaps overlapping."""
        data = self._data[term]
        kind = data[0]
        if kind == LITERAL:
            rest = self.literal(data[1][1:]) if len(data[1]) > 1 else EPSILON
            return [(1 << data[1][0], (), self.cat(rest, tail))]
        if kind == SET:
            return [(data[1], (), tail)]
        if kind == STRING:
            return [(data[2], (tail,), data[1])]
        if kind == UNLIKE:
            return self._unlike_arcs(data[1], data[2], data[3], tail)
        if kind == CALL:
            after = (tail,) if tail != EPSILON else ()
            return [(m, p + after, u) for m, p, u in self.arcs(self._rules[data[1]])]
        if kind == REFERENCE:
            return self._arcs_then(self._rules[data[1]], tail)
        if not self._head_call[term] and tail != EPSILON:
            return [(m, p, self.cat(u, tail)) for m, p, u in self.arcs(term)]
        if kind == ALT:
            return [arc for part in data[1] for arc in self._arcs_then(part, tail)]
        if kind == REPEAT:
            _, item, low, high = data
            rest = self.repeat(item, max(low - 1, 0), high - 1 if high > 0 else -1)
            return self._arcs_then(item, self.cat(rest, tail))
        if kind == CAT:
            arcs = []
            while data[0] == CAT:
                arcs += self._arcs_then(data[1], self.cat(data[2], tail))
                term = data[2]
                if not self._nullable[data[1]]:
                    return arcs
                data = self._data[term]
            return arcs + self._arcs_then(term, tail)
        if kind == BODY:
            return self._arcs_then(self.expanded(term), tail)
        if kind == ELSE:
            return self._arcs_then(self._alternatives(term), tail)
        if kind == MEMBERS:
            return self._arcs_then(self._next_member(data[1], data[2], data[3]), tail)
        if kind == STATE:
            return [(m, p, self.cat(u, tail)) for m, p, u in self._state_arcs(data[1], data[2], data[3])]
        return []

    def expanded(self, term: int) -> int:
        """`term`, or what follows the opening quote of its expansion if it is the inside of a string."""
        data = self._data[term]
        return self.expanded_rest(data[3]) if data[0] == BODY else term

    def expanded_rest(self, quoted: int) -> int:
        """What follows the opening quote of a quoted string that is spelled out."""
        return self.arcs(quoted)[0][2]

    def _alternatives(self, term: int) -> int:
        """The `alt` of all that an `otherwise` lists."""
        parts = []
        while self._data[term][0] == ELSE:
            _, first, term = self._data[term]
            parts.append(first)
        return self.listed([*parts, term])

    def _merge(self, arcs: list[Arc]) -> list[Arc]:
        if len(arcs) <= 1:
            return arcs
        by_mask: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for mask, pushes, target in arcs:
            by_mask.setdefault(mask, []).append((pushes, target))
        cells: list[tuple[int, list[tuple[tuple[int, ...], int]]]] = []
        for mask, goals in by_mask.items():
            rest = mask
            split: list[tuple[int, list[tuple[tuple[int, ...], int]]]] = []
            for cell, others in cells:
                both = cell & rest
                if not both:
                    split.append((cell, others))
                    continue
                split.append((both, others + goals))
                if cell != both:
                    split.append((cell ^ both, others))
                rest ^= both
            if rest:
                split.append((rest, goals))
            cells = split
        chosen: list[Arc] = []
        for mask, goals in cells:
            goals = list(dict.fromkeys(goals))
            if len(goals) > 1 and any(self._is_entered(t) for _, t in goals):
                chosen += self._merge([arc for p, t in goals for arc in self._spelled_out(mask, p, t)])
            else:
                chosen.append((mask, *self._choose(goals)))
        return chosen

    def _is_entered(self, term: int) -> bool:
        data = self._data[term]
        return bool(data[0] == BODY and data[4] == 1)

    def _spelled_out(self, mask: int, pushes: tuple[int, ...], target: int) -> list[Arc]:
        """An arc; one that enters a string as the arcs of that string's expansion."""
        if not self._is_entered(target):
            return [(mask, pushes, target)]
        inside = self.arcs(self.expanded(target))
        return [(m & mask, (), self.sequence(t, *pushes)) for m, _, t in inside if m & mask]

    def _choose(self, goals: list[tuple[tuple[int, ...], int]]) -> tuple[tuple[int, ...], int]:
        """One goal for several: alternatives on an equal stack, or spelled out without the stack."""
        pushes = goals[0][0]
        if len(goals) == 1:
            return goals[0]
        if all(p == pushes for p, _ in goals):
            return pushes, self.alt(self.expanded(t) for _, t in goals)
        target, below = goals[0][1], pushes[:-1]
        if pushes and all(t == target and p and p[:-1] == below for p, t in goals):
            return (*below, self.alt(p[-1] for p, _ in goals)), target
        return (), self.alt(self.unstacked(p, t) for p, t in goals)

    def unstacked(self, pushes: tuple[int, ...], target: int) -> int:
        """One term for where an arc leads and all that it pushes."""
        rest = self.sequence(*pushes)
        return self.cat(self.expanded(target), rest)


@dataclass(frozen=True, slots=True)
class Explored:
    """A finite automaton: `arcs[i]` are (mask, state) of state i; state 0 is the start."""

    arcs: list[list[tuple[int, int]]]
    accepting: list[bool]


def explore(terms: Terms, start: int) -> Explored:
    """All states of a term, calls put in where they stand. Raises TooLarge at a limit, which recursion always meets."""
    order = [start]
    index = {start: 0}
    rows: list[list[tuple[int, int]]] = []
    for term in order:
        row = []
        for mask, pushes, target in terms.arcs(term):
            if pushes:
                target = terms.unstacked(pushes, target)
            state = index.get(target)
            if state is None:
                state = index[target] = len(order)
                order.append(target)
            row.append((mask, state))
        rows.append(row)
        if len(order) > terms.limits.states:
            raise TooLarge(f"the constraint needs more than {terms.limits.states:,} states")
        if not len(rows) & 255:
            terms.check_time()
    return Explored(rows, [terms.nullable(t) for t in order])
