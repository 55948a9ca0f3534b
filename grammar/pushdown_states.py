"""The states of a constraint with a stack, built from terms where texts come to them, and what texts can do there.

What the compiled loops read (`pushdown_loops`) is made here: a state's arcs, or the bytes that are fixed, come when a loop
meets a state that has none. No masks here; `TokenPushdown` makes them from what the loops find.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from itertools import combinations
from string import ascii_letters, digits

import numpy as np

from grammar import pushdown_loops as loops
from grammar.byte_masks import bits
from grammar.constraint_errors import TooLarge
from grammar.measure import Begun, Measure
from grammar.order_tables import OrderTables
from grammar.pushdown_loops import (
    CLOSED,
    CROWDED,
    DEAD,
    FULL,
    LEFT,
    NAME,
    OK,
    OPEN,
    RUN,
    STRING,
    TAKE,
    UNBUILT,
)
from grammar.string_tables import inside
from grammar.term_arena import EMPTY, EPSILON, Limits
from grammar.terms import Terms
from grammar.token_measure import TokenMeasure
from grammar.vocabulary import Vocabulary

_MANY_ARCS = 5
_FEW_ALTERNATIVES = 3
_FARTHEST = (1 << 31) - 1
_LETTERS = frozenset((ascii_letters + digits).encode())

Config = tuple[int, int, int, int]
"""State, place inside a string (or fixed bytes that are done), characters so far (or the set beside the state), stack."""


class PushdownStates:
    """State 0 is that behind the end of all that a stack entry stands for. Not thread safe."""

    def __init__(self, terms: Terms, measure: Measure, vocabulary: Vocabulary, limits: Limits) -> None:
        self.terms, self.measure, self.vocabulary, self.limits = terms, measure, vocabulary, limits
        begun: PushdownStates | None = None
        if measure.begun is not None:
            begun = _begun(measure.begun, vocabulary, limits)
        known = begun._spelled if begun is not None else None
        self._spelled: TokenMeasure = TokenMeasure(measure, vocabulary.spelling.fewest, known)
        self._inside = inside()
        self._farthest_inside = self._inside.farthest
        self._index: dict[int, int] = {}
        self._term: list[int] = []
        self._kinds: list[int] = []
        self._spellings: list[int | None] = []  # of free states (see `Terms.mark_free`)
        self._has_set: list[bool] = []
        self._lengths: dict[
            int, tuple[int, int, int]
        ] = {}  # of a string: shortest, longest, where characters begin
        self._states = np.zeros((256, loops.WIDTH), np.int32)
        self._arcs = np.zeros((1024, 5), np.int32)
        self._dense = np.full((16, 256), -1, np.int32)
        self._used_dense = 1
        self._pushes = np.zeros(256, np.int32)
        self._push_lists: dict[tuple[int, ...], int] = {}
        self._others: set[int] = set()  # states that know which arc other names take
        self._runs = np.zeros(1024, np.uint8)
        self._run_tokens = np.zeros(1024, np.int32)
        self._used_arcs = self._used_pushes = self._used_runs = 0
        self._begun_with = len(begun._term) - 1 if begun is not None else 0
        if begun is not None:
            for name in _BUILT:
                setattr(self, name, copy(getattr(begun, name)))
        self._stack = np.zeros((1024, 6), np.int64)
        self._stack[0, loops.ENDS] = 1
        self._slots = np.full(4096, -1, np.int32)
        self._used = np.array([1, 1, 0])  # of the stack, of sets and of their masks
        self._path = np.zeros((vocabulary.trie.max_depth + 1, 6), np.int64)
        self._progress = np.zeros(loops.PROGRESS, np.int64)
        self._eos = np.array(vocabulary.eos, np.int32)
        self._orders = OrderTables(measure, self._spelled, limits, self._moved)
        self._configs: list[Config] = []  # those that have a number
        self._moved()
        self._state(EPSILON)

    def _moved(self) -> None:
        """Tell the loops where the tables are now; after each that was made larger."""
        sets = self._orders
        self._tables = loops.machine_tables(
            self._states, self._arcs, self._dense, self._pushes, self._runs, self._run_tokens,
            self._inside.table, self._inside.need, self._stack, self._slots, self._used,
            sets.endings, sets.orders, sets.members, sets.sets, sets.masks, sets.slots,
            self._path, self._progress, self._eos, sets.alternatives, sets.fewer, self.vocabulary.words,
        )  # fmt: skip
        self._machine = int(self._tables.ctypes.data)

    def _state(self, term: int) -> int:
        """The number of a term's state; its arcs come when it is visited."""
        found = self._index.get(term)
        if found is None:
            found = self._index[term] = len(self._term)
            if found >= self.limits.states:
                raise TooLarge(f"the constraint needs more than {self.limits.states:,} states")
            self._term.append(term)
            if found == len(self._states):
                self._states = np.vstack([self._states, np.zeros_like(self._states)])
                self._moved()
            bounds = self.terms.string_bounds(term)
            row = self._states[found]
            low, high, spelling = bounds or (0, 0, 0)
            base = self._inside.bases[spelling] if bounds else 0
            kind = CLOSED if term == EPSILON else STRING if bounds else OPEN
            if kind == OPEN and self.terms.leading_literal(term):
                kind = RUN
            elif kind == OPEN and self.terms.name_or_other(term):
                kind = NAME
            nullable, distance = self.terms.nullable(term), min(self.measure.shortest(term), _FARTHEST)
            row[: loops.OTHER] = (0, -1, kind, nullable, low, high, distance, base, 0)
            self._kinds.append(kind)
            self._spellings.append(self.terms.free_spelling(term))
            self._has_set.append(self.terms.takes(term))
            if kind == STRING:
                self._lengths[found] = low, high, base
            row[loops.TOKENS] = min(self._spelled.enough(term), _FARTHEST)
            if kind in (CLOSED, STRING):
                row[loops.COUNT] = 0
            if self._has_set[found]:
                row[loops.ENDINGS], row[loops.LEADS_TO] = self._orders.endings_at(term)
                if self._spellings[found] is not None:
                    self._orders.note_free(term)
            self._put_sets_beside(found, term)
        return found

    def _put_sets_beside(self, state: int, term: int) -> None:
        """Where a state is only members that are left, or says that one was taken: it is replaced where it is met."""
        left = self.terms.members_left(term)
        kind, order, value = TAKE, 0, 0
        if left is not None:
            kind, order = LEFT, self._order(left[0])
            value = self._orders.set_of(lambda: self._machine, self._used, order, left[1], left[2])
        elif not self.terms.is_taken(term):
            return
        row = self._states[state]
        row[loops.KIND], row[loops.COUNT], row[loops.FIRST], row[loops.LOW] = kind, 0, order, value
        self._kinds[state] = kind

    def _order(self, joined: int) -> int:
        """The number of an order in the tables."""
        found = self._orders.number_of(joined)
        if found is None:
            self._orders.begin(joined)
            begin, more = (self._state(self.terms.any_left(joined, first)) for first in (True, False))
            found = self._orders.add(joined, begin, more)
            self._add_fewer(joined, found)
        return found

    def _add_fewer(self, joined: int, number: int) -> None:
        """Give an order of several alternatives those of less of them: where one is left, as nearly always after a member
        or two, states are again as simple as those of one."""
        alternatives = self.terms.joined(joined)
        count = len(alternatives)
        most = count if count <= _FEW_ALTERNATIVES else min(count, 2)
        for left in (c for n in range(1, most) for c in combinations(range(count), n)):
            goal = self._order(self.terms.join(tuple(alternatives[i] for i in left)))
            self._orders.add_fewer(number, sum(1 << i for i in left), goal)

    def build_from(self, terms: Iterable[int]) -> None:
        """Build all states of these terms, which have few."""
        for term in terms:
            self._state(term)
        done = 0
        while done < len(self._term):
            if self._states[done, loops.COUNT] < 0:
                self._build(done)
            done += 1

    def _build(self, state: int) -> None:
        """Give a state its arcs, or the bytes that are fixed here."""
        kind = self._states[state, loops.KIND]
        if kind == RUN:
            self._build_run(state)
            return
        if kind == NAME:
            self._build_name(state)
            return
        rows: list[tuple[int, int, int, int, int]] = []
        for mask, pushed, target in self.terms.arcs(self._term[state]):
            frames = [self._state(p) for p in pushed if p != EPSILON]
            goal = self._state(target)
            at = self._push_list(frames)
            rows += [(low, high, goal, at, len(frames)) for low, high in byte_ranges(mask)]
        rows.sort()  # walks go from one arc to the next
        first = self._add_arcs(rows)
        if len(rows) > _MANY_ARCS:
            self._make_dense(state, rows)
        if self._spellings[state] is not None:
            self._note_others(state, first, rows)
        over = self.terms.over(self._term[state]) if self._has_set[state] else EMPTY
        self._states[state, loops.OVER] = self._state(over) if over != EMPTY else 0
        self._states[state, loops.FIRST] = first
        self._states[state, loops.COUNT] = self._used_arcs - first

    def _note_others(self, state: int, first: int, rows: list[tuple[int, int, int, int, int]]) -> None:
        """Of a state where any text of a string may follow: which arc those take that are the names of no member."""
        base = self._inside.bases[self._spellings[state] or 0]
        entering = [i for i, row in enumerate(rows) if self._enters_string(row[2], base) and row[4]]
        if entering and len({rows[i][2:] for i in entering}) == 1:
            self._states[state, loops.OTHER] = first + entering[0]
            self._others.add(state)

    def _enters_string(self, state: int, base: int) -> bool:
        """Is it the inside of a string without bounds?"""
        return self._kinds[state] == STRING and self._lengths[state] == (0, -1, base)

    def _push_list(self, frames: list[int]) -> int:
        """Where these states are kept, to be pushed by an arc."""
        found = self._push_lists.get(tuple(frames))
        if found is not None:
            return found
        while self._used_pushes + len(frames) > len(self._pushes):
            self._pushes = np.concatenate([self._pushes, np.zeros_like(self._pushes)])
            self._moved()
        at = self._used_pushes
        if frames:
            self._pushes[at : at + len(frames)] = frames
            self._used_pushes += len(frames)
        self._push_lists[tuple(frames)] = at
        return at

    def _add_arcs(self, rows: list[tuple[int, int, int, int, int]]) -> int:
        """The number of the first of them."""
        first = self._used_arcs
        while first + len(rows) > len(self._arcs):
            self._arcs = np.vstack([self._arcs, np.zeros_like(self._arcs)])
            self._moved()
        if rows:
            self._arcs[first : first + len(rows)] = rows
            self._used_arcs += len(rows)
        return first

    def _make_dense(self, state: int, rows: list[tuple[int, int, int, int, int]]) -> None:
        """Look the arcs of a wide state up by byte."""
        if self._used_dense == len(self._dense):
            self._dense = np.vstack([self._dense, np.full_like(self._dense, -1)])
            self._moved()
        for i, (low, high, *_) in enumerate(rows):
            self._dense[self._used_dense, low : high + 1] = self._used_arcs - len(rows) + i
        self._states[state, loops.DENSE] = self._used_dense
        self._used_dense += 1

    def _build_run(self, state: int) -> None:
        text, after = self.terms.leading_literal(self._term[state]) or (b"", EPSILON)
        self._follow(state, text, self._state(after))

    def _build_name(self, state: int) -> None:
        parts = self.terms.name_or_other(self._term[state])
        assert parts is not None
        shortest, spelled = self.measure.shortest, self._spelled.enough
        frames = [self._state(parts.tail)] if parts.tail != EPSILON else []
        goal, inner = self._state(parts.after), self._state(parts.inner)
        at = self._push_list(frames)
        other = self._add_arcs([(0, 255, inner, at, len(frames))])
        self._follow(state, parts.text, goal)
        self._states[state, loops.OTHER] = other
        if frames and self._enters_string(inner, self._inside.bases[1]):
            self._others.add(state)
        self._states[state, loops.BY_NAME] = min(shortest(parts.after) + len(parts.text), _FARTHEST)
        self._states[state, loops.BY_OTHER] = min(1 + shortest(parts.tail), _FARTHEST)
        self._states[state, loops.OTHERWISE] = min(1 + spelled(parts.tail), _FARTHEST)

    def _follow(self, state: int, text: bytes, goal: int) -> None:
        """A state's fixed bytes, and the state after them."""
        while self._used_runs + len(text) > len(self._runs):
            self._runs = np.concatenate([self._runs, np.zeros_like(self._runs)])
            self._run_tokens = np.concatenate([self._run_tokens, np.zeros_like(self._run_tokens)])
            self._moved()
        here = slice(self._used_runs, self._used_runs + len(text))
        self._runs[here] = np.frombuffer(text, np.uint8)
        self._run_tokens[here] = self.vocabulary.spelling.suffixes(text)[:-1]
        row = self._states[state]
        row[loops.AFTER] = min(self._spelled.enough(self._term[goal]), _FARTHEST)
        row[loops.FIRST], row[loops.COUNT] = goal, 0
        row[loops.LOW], row[loops.HIGH] = self._used_runs, len(text)
        self._used_runs += len(text)

    def _run_byte(self, config: Config) -> int:
        """The byte that is fixed at a place of a run."""
        at, place, _, _ = config
        if self._states[at, loops.COUNT] < 0:
            self._build(at)
        return int(self._runs[self._states[at, loops.LOW] + place])

    def grow_stack(self) -> None:
        """Room for twice as many stacks."""
        self._stack = np.vstack([self._stack, np.zeros_like(self._stack)])
        self._slots = np.full(len(self._slots) * 2, -1, np.int32)
        used, self._used[loops.STACKS] = int(self._used[loops.STACKS]), 1
        self._moved()
        for node in range(1, used):
            state, held, parent = self._stack[node, [loops.RETURN, loops.HELD, loops.PARENT]].tolist()
            loops.push(self._machine, state, held, parent)

    def _mend(self, status: int, state: int) -> None:
        if status == UNBUILT:
            self._build(state)
        elif status == FULL:
            self.grow_stack()
        elif status == CROWDED:
            self._orders.grow(self._used)

    # what texts can do

    def can_end(self, state: int) -> bool:
        at, _, _, top = self._configs[state]
        return bool(self._states[at, loops.FINAL] and self._stack[top, loops.ENDS])

    def must_end(self, state: int) -> bool:
        """May nothing but the end follow?"""
        at, _, _, top = self._configs[state]
        return at == 0 and top == 0

    def _after_string(self, top: int) -> Config:
        """The configuration behind the closing quote of a string on the stack `top`."""
        state = held = 0
        while state == 0 and top != 0:
            state, held, top = self._stack[top, [loops.RETURN, loops.HELD, loops.PARENT]].tolist()
        return state, int(self._states[state, loops.BASE]), held, top

    def closing_text(self, state: int) -> bytes:
        """A shortest text from here to the end, always the same one, and the rest of it after each of its bytes."""
        out = bytearray()
        config = self._configs[state]
        while not (self._states[config[0], loops.FINAL] and self._stack[config[3], loops.ENDS]):
            best: tuple[int, int, Config] | None = None
            for byte in self._following(config):
                after = self._after(config, byte)
                if after is None:
                    continue
                close = int(loops.need(self._machine, *after))
                rank = (close, 0 if byte in _LETTERS else 1, byte)
                if best is None or rank < (best[0], 0 if best[1] in _LETTERS else 1, best[1]):
                    best = (close, byte, after)
            assert best is not None, "a state from which no text can be finished"
            out.append(best[1])
            config = best[2]
        return bytes(out)

    def _following(self, config: Config) -> list[int]:
        """Bytes worth trying: one of each range that leads somewhere else."""
        at, place, held, top = config
        if self._states[at, loops.KIND] == STRING:
            if place == self._states[at, loops.BASE]:
                return [0x22, 0x61]
            row = self._inside.table[place]
            return [int(np.flatnonzero(row == goal)[0]) for goal in np.unique(row[row >= 0])]
        found: set[int] = set()
        while True:
            if self._states[at, loops.KIND] in (RUN, NAME):
                if self._states[at, loops.KIND] == NAME:
                    found.add(0x22)
                return sorted({*found, self._run_byte((at, place, 0, top))})
            if self._states[at, loops.COUNT] < 0:
                self._build(at)
            for mask, _, _ in self.terms.arcs(self._term[at]):
                listed = bits(mask)
                found.add(next((b for b in listed if b in _LETTERS), listed[0]))
            if self._states[at, loops.FINAL] and top:
                at, held, top = self._stack[top, [loops.RETURN, loops.HELD, loops.PARENT]].tolist()
                place = int(self._states[at, loops.BASE])
                continue
            over = self._when_over(at, held)
            if over is None:
                return sorted(found)
            at, held = over

    def _after(self, config: Config, byte: int) -> Config | None:
        while True:
            status, at, place, count, top = loops.step(self._machine, *config, byte)
            if status == OK:
                return int(at), int(place), int(count), int(top)
            if status == DEAD:
                return None
            self._mend(status, at)

    def _when_over(self, at: int, held: int) -> tuple[int, int] | None:
        """State and set where a member is over without another byte; None if it may not be."""
        if self._states[at, loops.COUNT] < 0:
            self._build(at)
        over = int(self._states[at, loops.OVER])
        while over:
            status, state, after = loops.enter(self._machine, over, held)
            if status == OK:
                return int(state), int(after)
            if status == DEAD:
                return None
            self._mend(status, at)
        return None

    def forced(self, state: int) -> bytes:
        """What every continuation begins with; empty where the text may end."""
        out = bytearray()
        config: Config | None = self._configs[state]
        while config is not None and len(out) < 1 << 16:
            byte = self._only_byte(config)
            if byte is None:
                break
            out.append(byte)
            config = self._after(config, byte)
        return bytes(out)

    def _only_byte(self, config: Config) -> int | None:
        at, place, count, top = config
        if self._states[at, loops.KIND] == STRING:
            if place != self._states[at, loops.BASE]:
                row = np.flatnonzero(self._inside.table[place] >= 0)
                return int(row[0]) if len(row) == 1 else None
            return 0x22 if count == self._states[at, loops.HIGH] else None
        if self._states[at, loops.KIND] == RUN:
            return self._run_byte(config)
        beside = self._has_set[at]
        if self._states[at, loops.KIND] == NAME:
            free = not beside or self._orders.free_spelling(self._term[at], count) is not None
            return None if free else self._run_byte(config)
        masks = [mask for mask, _, _ in self.terms.arcs(self._term[at])]
        if self._states[at, loops.FINAL]:
            return None if masks or not top else self._only_byte(self._after_string(top))
        if beside:
            masks = [mask for mask in masks if self._after(config, bits(mask)[0]) is not None]
            over = self._when_over(at, count)
            if over is not None:
                return None if masks else self._only_byte((over[0], 0, over[1], top))
        if len(masks) == 1 and masks[0] & (masks[0] - 1) == 0:
            return masks[0].bit_length() - 1
        return None


_BUILT = (
    "_index", "_term", "_kinds", "_spellings", "_has_set", "_lengths", "_states", "_arcs", "_dense", "_used_dense", "_pushes",
    "_push_lists", "_others", "_runs", "_run_tokens", "_used_arcs", "_used_pushes", "_used_runs",
)  # fmt: skip
"""What states and their arcs are kept in."""


def _begun(known: Begun, vocabulary: Vocabulary, limits: Limits) -> PushdownStates:
    """The states of what an arena begins with, built once for a vocabulary."""
    found = vocabulary.begun.get(known)
    if found is None:
        found = PushdownStates(known.terms, known.measure, vocabulary, limits)
        count = known.terms.count
        found.build_from(known.followed)
        assert known.terms.count == count, "terms that an arena begins with need others"
        found = vocabulary.begun.setdefault(known, found)
    return found


@lru_cache(maxsize=1 << 14)
def byte_ranges(mask: int) -> tuple[tuple[int, int], ...]:
    """A mask of bytes as inclusive ranges, ascending."""
    ranges = []
    while mask:
        low = (mask & -mask).bit_length() - 1
        shifted = mask >> low
        length = (~shifted & (shifted + 1)).bit_length() - 1
        ranges.append((low, low + length - 1))
        mask &= ~(((1 << length) - 1) << low)
    return tuple(ranges)
