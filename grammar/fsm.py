"""A finite automaton over the bytes of UTF-8 text, as immutable tables.

State 0 is the start; -1 is the dead state; every other state can still reach acceptance. Bytes that no
state tells apart share a class, so a table has as many columns as there are classes. Everything that is
asked of a constraint before it meets a vocabulary (is it empty, what is forced, how long can it be) is
answered here; products build new automata from two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from grammar import codepoints as cp
from grammar.automaton_terms import Automaton
from grammar.byte_masks import CONTINUATION, bits
from grammar.constraint_errors import TooLarge
from grammar.minimise import minimise
from grammar.term_arena import DEFAULT_LIMITS, EPSILON, Limits
from grammar.terms import Explored, Terms, explore

DEAD = -1


@dataclass(frozen=True, eq=False)
class Fsm:
    """
    table      int32 [states, classes]; -1 where nothing can follow
    class_of   uint8 [256]
    accepting  bool [states]
    """

    table: np.ndarray
    class_of: np.ndarray
    accepting: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.table, self.class_of, self.accepting):
            array.setflags(write=False)

    @staticmethod
    def of_terms(terms: Terms, term: int) -> Fsm:
        """The minimal automaton of a term that calls no rule."""
        return Fsm.of_explored(explore(terms, term))

    @staticmethod
    def of_explored(found: Explored) -> Fsm:
        class_of, classes = _byte_classes({mask for row in found.arcs for mask, _ in row})
        table = np.full((len(found.arcs), classes), DEAD, np.int32)
        columns: dict[int, list[int]] = {}
        for state, row in enumerate(found.arcs):
            for mask, target in row:
                where = columns.get(mask)
                if where is None:
                    where = columns[mask] = sorted({int(class_of[b]) for b in bits(mask)})
                for c in where:
                    table[state, c] = target
        return Fsm.minimal(table, class_of, np.array(found.accepting, np.bool_))

    @staticmethod
    def minimal(table: np.ndarray, class_of: np.ndarray, accepting: np.ndarray) -> Fsm:
        table, accepting = minimise(table, accepting)
        columns, back = np.unique(table, axis=1, return_inverse=True)
        return Fsm(np.ascontiguousarray(columns), back.reshape(-1)[class_of].astype(np.uint8), accepting)

    def automaton(self, spelled: dict[int, bytes] | None = None, low: int = 0, high: int = -1) -> Automaton:
        """For use inside of terms: texts of `low` to `high` (-1: any number of) characters.

        `spelled` bytes are written as other text there (escapes).
        """
        class_masks = [0] * self.classes
        for byte in range(256):
            class_masks[self.class_of[byte]] |= 1 << byte
        rows = []
        for row in self.table.tolist():
            goals: dict[int, int] = {}
            for c, goal in enumerate(row):
                if goal >= 0:
                    goals[goal] = goals.get(goal, 0) | class_masks[c]
            rows.append(tuple((mask, goal) for goal, mask in goals.items()))
        counted = low > 0 or high >= 0
        fewest, most = self._characters(rows) if counted else ((), ())
        free = () if counted else tuple(self._free().tolist())
        return Automaton(
            tuple(rows), tuple(self.accepting.tolist()), spelled or {}, low, high, fewest, most,
            free if any(free) else (),
        )  # fmt: skip

    def _free(self) -> np.ndarray:
        """bool [states]: from here on every text is the beginning of an accepted one."""
        every = any_text()
        pairs = np.unique(self.class_of.astype(np.int64) * every.classes + every.class_of)
        here = self.table[:, pairs // every.classes]
        there = every.table[:, pairs % every.classes]
        good = np.ones((self.states, every.states), np.bool_)
        while True:
            after = (here[:, None, :] >= 0) & good[here[:, None, :], there[None, :, :]]
            better = good & (after | (there[None, :, :] < 0)).all(axis=2)
            if (better == good).all():
                return good[:, 0]
            good = better

    def _characters(self, rows: list[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The fewest and the most (-1: no bound) characters from each state to acceptance."""
        edges = [
            (state, goal, 0 if mask & CONTINUATION == mask else 1)
            for state, row in enumerate(rows)
            for mask, goal in row
        ]
        table = np.array(edges, np.int64).reshape(-1, 3)
        far = np.iinfo(np.int64).max // 2
        fewest = np.where(self.accepting, 0, far)
        while True:
            near = fewest.copy()
            np.minimum.at(near, table[:, 0], fewest[table[:, 1]] + table[:, 2])
            if (near == fewest).all():
                break
            fewest = near
        most = np.where(self.accepting, 0, -1)
        for _ in range(self.states + 1):
            far_off = most.copy()
            np.maximum.at(
                far_off, table[:, 0], np.where(most[table[:, 1]] >= 0, most[table[:, 1]] + table[:, 2], -1)
            )
            if (far_off == most).all():
                return tuple(fewest.tolist()), tuple(most.tolist())
            most = far_off
        endless = most > self.states
        return tuple(fewest.tolist()), tuple(np.where(endless, -1, most).tolist())

    @property
    def states(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> int:
        return int(self.table.shape[1])

    @cached_property
    def byte_table(self) -> np.ndarray:
        """int32 [states, 256]."""
        return np.ascontiguousarray(self.table[:, self.class_of])

    def step(self, state: int, byte: int) -> int:
        """The state after `byte`, -1 if it cannot follow."""
        return int(self.table[state, self.class_of[byte]]) if state >= 0 else DEAD

    def run(self, data: bytes, state: int = 0) -> int:
        for byte in data:
            state = self.step(state, byte)
            if state < 0:
                return DEAD
        return state

    def accepts(self, text: str | bytes) -> bool:
        state = self.run(text.encode() if isinstance(text, str) else text)
        return state >= 0 and bool(self.accepting[state])

    @property
    def is_empty(self) -> bool:
        return not self.accepting.any()

    @cached_property
    def _only_byte(self) -> np.ndarray:
        """int16 [states]: the one byte that can follow, -1 if there are several, or none, or it may end."""
        live = self.byte_table >= 0
        one = (live.sum(axis=1) == 1) & ~self.accepting
        return np.where(one, live.argmax(axis=1), -1).astype(np.int16)

    def forced_text(self, state: int = 0) -> bytes:
        """What every continuation begins with. Ends where the text may end."""
        out = bytearray()
        only = self._only_byte
        while only[state] >= 0:
            out.append(int(only[state]))
            state = self.step(state, out[-1])
        return bytes(out)

    @cached_property
    def longest_forced(self) -> int:
        """Bytes of the longest run that is forced after the first choice."""
        only, lengths = self._only_byte, np.zeros(self.states, np.int64)
        seen = np.zeros(self.states, np.bool_)
        seen[self.run(self.forced_text())] = True
        front = np.flatnonzero(seen)
        while len(front):
            goals = np.unique(self.table[front])
            front = goals[(goals >= 0) & ~seen[goals]]
            seen[front] = True
        forced = np.flatnonzero(seen & (only >= 0))
        after = self.byte_table[forced, only[forced]]
        while True:  # a run never comes back to where it was, or it would have no end
            longer = lengths[after] + 1
            if (longer == lengths[forced]).all():
                return int(lengths.max())
            lengths[forced] = longer

    @cached_property
    def distance(self) -> np.ndarray:
        """int64 [states]: bytes of the shortest text from each state to acceptance."""
        far = np.iinfo(np.int64).max // 2
        distance = np.where(self.accepting, 0, far)
        while True:
            near = np.where(self.table >= 0, distance[self.table], far).min(axis=1, initial=far)
            better = np.minimum(distance, near + 1)
            if (better == distance).all():
                return distance
            distance = better

    def witness(self, state: int = 0) -> bytes | None:
        """A shortest accepted continuation (of these, the one with the smallest bytes); None if there is none."""
        if self.is_empty:
            return None
        out = bytearray()
        while not self.accepting[state]:
            row = self.byte_table[state]
            goals = np.where(row >= 0, self.distance[row], np.iinfo(np.int64).max)
            byte = _prefer_printable(goals)
            out.append(byte)
            state = int(row[byte])
        return bytes(out)

    @cached_property
    def longest(self) -> int | None:
        """Bytes of the longest accepted text; None if there is no longest."""
        degree = (self.table >= 0).sum(axis=1)
        sources: list[list[int]] = [[] for _ in range(self.states)]
        for state, column in np.argwhere(self.table >= 0):
            sources[int(self.table[state, column])].append(int(state))
        order = [s for s in range(self.states) if degree[s] == 0]
        length = np.zeros(self.states, np.int64)
        for state in order:
            for source in sources[state]:
                length[source] = max(length[source], length[state] + 1)
                degree[source] -= 1
                if degree[source] == 0:
                    order.append(source)
        return int(length[0]) if len(order) == self.states else None

    @property
    def is_finite(self) -> bool:
        return self.longest is not None

    def texts(self, limit: int) -> list[bytes] | None:
        """All accepted texts, sorted; None if there are more than `limit`."""
        if not self.is_finite:
            return None
        found: list[bytes] = []
        todo = [(b"", 0)]
        while todo:
            prefix, state = todo.pop()
            if self.accepting[state]:
                found.append(prefix)
            for byte in np.flatnonzero(self.byte_table[state] >= 0)[::-1]:
                todo.append((prefix + bytes([byte]), int(self.byte_table[state, byte])))
            if len(found) + len(todo) > limit + 1 or len(found) > limit:
                return None
        return sorted(found)

    # products

    def intersection(self, other: Fsm, limits: Limits = DEFAULT_LIMITS) -> Fsm:
        return _product(self, other, lambda a, b: a & b, limits)

    def union(self, other: Fsm, limits: Limits = DEFAULT_LIMITS) -> Fsm:
        return _product(self, other, lambda a, b: a | b, limits)

    def difference(self, other: Fsm, limits: Limits = DEFAULT_LIMITS) -> Fsm:
        return _product(self, other, lambda a, b: a & ~b, limits)

    def complement(self, limits: Limits = DEFAULT_LIMITS) -> Fsm:
        """Every UTF-8 text that this one does not accept."""
        return any_text().difference(self, limits)

    def equivalent(self, other: Fsm) -> bool:
        return _product(self, other, lambda a, b: a ^ b, Limits(states=1 << 22)).is_empty

    def contains(self, other: Fsm) -> bool:
        """Is every text of `other` accepted?"""
        return other.difference(self, Limits(states=1 << 22)).is_empty

    def to_dot(self) -> str:
        lines = ["digraph fsm {", "  rankdir=LR;", '  start [shape=point]; start -> "0";']
        for state in range(self.states):
            shape = "doublecircle" if self.accepting[state] else "circle"
            lines.append(f'  "{state}" [shape={shape}];')
            goals: dict[int, list[int]] = {}
            for byte in np.flatnonzero(self.byte_table[state] >= 0):
                goals.setdefault(int(self.byte_table[state, byte]), []).append(int(byte))
            for goal, found in goals.items():
                label = byte_label(found).replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'  "{state}" -> "{goal}" [label="{label}"];')
        return "\n".join([*lines, "}"])


def byte_label(found: list[int]) -> str:
    """Ranges of bytes for people: `0-9`, `a`, `0x80-0xbf`."""

    def name(byte: int) -> str:
        return chr(byte) if 0x21 <= byte <= 0x7E else f"0x{byte:02x}"

    parts = []
    for first, last in _runs(found):
        parts.append(name(first) if first == last else f"{name(first)}-{name(last)}")
    return " ".join(parts)


def _runs(found: list[int]) -> Iterator[tuple[int, int]]:
    start = previous = found[0]
    for byte in found[1:]:
        if byte != previous + 1:
            yield start, previous
            start = byte
        previous = byte
    yield start, previous


def _prefer_printable(goals: np.ndarray) -> int:
    """The smallest byte with the least distance; a letter or digit if one has it."""
    least = goals.min()
    best = np.flatnonzero(goals == least)
    for byte in best:
        if chr(byte).isalnum() and byte < 128:
            return int(byte)
    return int(best[0])


def _byte_classes(masks: set[int]) -> tuple[np.ndarray, int]:
    """The coarsest partition of the 256 bytes that every mask is a union of."""
    columns = np.zeros((len(masks) + 1, 256), np.uint8)
    for row, mask in enumerate(masks):
        columns[row] = np.unpackbits(np.frombuffer(mask.to_bytes(32, "little"), np.uint8), bitorder="little")
    _, class_of = np.unique(columns, axis=1, return_inverse=True)
    class_of = class_of.reshape(-1)
    return class_of.astype(np.uint8), int(class_of.max()) + 1


def _product(a: Fsm, b: Fsm, accept: Callable[[np.ndarray, np.ndarray], np.ndarray], limits: Limits) -> Fsm:
    """Both automata at once, each with its dead state as one more state; then minimised."""
    pair = a.class_of.astype(np.int64) * b.classes + b.class_of
    used, class_of = np.unique(pair, return_inverse=True)
    table_a = np.vstack([np.where(a.table < 0, a.states, a.table), np.full((1, a.classes), a.states)])
    table_b = np.vstack([np.where(b.table < 0, b.states, b.table), np.full((1, b.classes), b.states)])
    width = b.states + 1
    goals_a, goals_b = table_a[:, used // b.classes], table_b[:, used % b.classes]
    index = {0: 0}
    order = [0]
    rows: list[list[int]] = []
    for key in order:
        row = goals_a[key // width].astype(np.int64) * width + goals_b[key % width]
        numbers = []
        for goal in row.tolist():
            number = index.get(goal)
            if number is None:
                number = index[goal] = len(order)
                order.append(goal)
            numbers.append(number)
        rows.append(numbers)
        if len(order) > limits.states:
            raise TooLarge(f"the product of two automata needs more than {limits.states:,} states")
    keys = np.array(order)
    accepting_a = np.append(a.accepting, False)[keys // width]
    accepting_b = np.append(b.accepting, False)[keys % width]
    return Fsm.minimal(
        np.array(rows, np.int32), class_of.reshape(-1).astype(np.uint8), accept(accepting_a, accepting_b)
    )


@cache
def any_text() -> Fsm:
    """Every UTF-8 text."""
    terms = Terms()
    return Fsm.of_terms(terms, terms.repeat(terms.chars(cp.ALL), 0, -1))


def nothing() -> Fsm:
    return Fsm(np.full((1, 1), DEAD, np.int32), np.zeros(256, np.uint8), np.zeros(1, np.bool_))


def of_texts(texts: list[bytes]) -> Fsm:
    """Exactly these texts."""
    terms = Terms()
    return Fsm.of_terms(terms, terms.alt(terms.literal(t) if t else EPSILON for t in texts))
