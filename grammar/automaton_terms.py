"""A finite automaton as terms: one for each state, with the number of characters so far where lengths are bounded."""

from __future__ import annotations

from dataclasses import dataclass

from grammar.byte_masks import CONTINUATION, bits
from grammar.term_arena import EMPTY, STATE, Arc, Limits, TermArena


@dataclass(frozen=True, slots=True)
class Automaton:
    """A finite automaton as a term: `rows[state]` are (mask, state); bytes in `spelled` are written otherwise.

    Texts have `low` to `high` (-1: any number of) characters, counted beside the state; then `fewest` and
    `most` (-1: no bound) are characters from each state to acceptance. `free` states take any text.
    """

    rows: tuple[tuple[tuple[int, int], ...], ...]
    accepting: tuple[bool, ...]
    spelled: dict[int, bytes]
    low: int = 0
    high: int = -1
    fewest: tuple[int, ...] = ()
    most: tuple[int, ...] = ()
    free: tuple[bool, ...] = ()

    def live(self, state: int, count: int) -> bool:
        """Can a text with `count` characters so far still be finished from here?"""
        if not self.fewest:
            return True
        if self.high >= 0 and count + self.fewest[state] > self.high:
            return False
        return self.most[state] < 0 or count + self.most[state] >= self.low


class AutomatonTerms(TermArena):
    """Terms that are states of an `Automaton`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._automata: list[Automaton] = []

    def automaton(self, automaton: Automaton) -> int:
        """The language of a finite automaton, entered at state 0."""
        if not any(automaton.accepting) or not automaton.live(0, 0):
            return EMPTY
        self._automata.append(automaton)
        return self._state(len(self._automata) - 1, 0, 0)

    def automaton_of(self, index: int) -> Automaton:
        return self._automata[index]

    def _state(self, index: int, state: int, count: int) -> int:
        automaton = self._automata[index]
        term = self._new((STATE, index, state, count), automaton.accepting[state] and count >= automaton.low)
        if automaton.free and automaton.free[state]:
            self._free[term] = 1
        return term

    def _state_arcs(self, index: int, state: int, count: int) -> list[Arc]:
        automaton = self._automata[index]
        special = sum(1 << b for b in automaton.spelled)
        arcs: list[Arc] = []
        for mask, goal in automaton.rows[state]:
            for part, more in ((mask & CONTINUATION, 0), (mask & ~CONTINUATION, 1)):
                after = count
                if automaton.fewest:
                    after = count + more if automaton.high >= 0 else min(count + more, automaton.low)
                if not part or not automaton.live(goal, after):
                    continue
                target = self._state(index, goal, after)
                if part & ~special:
                    arcs.append((part & ~special, (), target))
                for byte in bits(part & special):
                    text = automaton.spelled[byte]
                    arcs.append((1 << text[0], (), self.cat(self.literal(text[1:]), target)))
        return arcs
