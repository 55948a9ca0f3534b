"""A constraint with a stack over token ids: masks are made where they are visited, and kept.

The same questions as `TokenFsm` answers, for constraints that recursion or size keep from being one
table. A mask is found by walking the vocabulary's tree with the machine; inside of strings, where nearly
all tokens may follow, only those that close the string are walked (`StringTables`). Every text the machine
has begun can be finished, provided that the vocabulary has a token for each single byte.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np

from grammar import pushdown_loops as loops
from grammar.constraint_errors import TooLarge, Unsatisfiable, VocabularyError
from grammar.measure import INFINITE, Distances, Measure
from grammar.pattern_rows import PatternTable
from grammar.pushdown_loops import (
    DEAD,
    NAME,
    OK,
    STRING,
)  # fmt: skip
from grammar.pushdown_states import Config, PushdownStates
from grammar.row_pool import KeptRow, give_all
from grammar.term_arena import CAT, EMPTY, STATE, Limits
from grammar.terms import Terms
from grammar.vocabulary import Vocabulary
from grammar.walk_tree import Source, WalkTree

_NONE = np.zeros(0, np.int32)
_BEGIN = np.array([-1, 0, 0, 0, -1])  # of a walk's progress
_LONGEST = 1 << 17  # bytes that the shortest text may have; it is spelled out to know its tokens
_FEW = 2048  # tokens of its own for which a row is remembered by what it is made of
_WIDE = 8  # rows with more of their own that are remembered all the same
_PATTERN_ROWS = 1000  # states of which the rows of patterns are made ahead
_MAX_STEPS = 1 << 17  # steps and ways to the end that are remembered
_FREE_ROWS = 64  # of free texts whose end is near
_STATE_BYTES, _TERM_BYTES, _NOTE_BYTES = 1200, 250, 250  # of Python's objects, as measured


class Recipe(NamedTuple):
    """What a row is made of.

    shared   uint32 [words] that constraints share; None: nothing
    ids      int32: tokens beside these
    needs    int32: tokens that are enough to complete the text after each of `ids`, without what is below on the stack
    """

    shared: np.ndarray | None
    ids: np.ndarray
    needs: np.ndarray


class TokenPushdown(PushdownStates):
    """States are numbers of configurations; -1 is the dead one. Not thread safe."""

    start = 0

    def __init__(
        self,
        terms: Terms,
        start: int,
        measure: Measure,
        vocabulary: Vocabulary,
        limits: Limits,
        row_bytes: int = 4 << 20,
    ) -> None:
        if start == EMPTY or measure.shortest(start) >= INFINITE:
            raise Unsatisfiable("no text matches the constraint")
        if measure.shortest(start) > _LONGEST:
            raise TooLarge(f"the shortest text that matches has more than {_LONGEST:,} bytes")
        missing = vocabulary.missing_bytes
        if missing:
            raise VocabularyError(
                f"the vocabulary has no token for {len(missing)} single bytes (the first is {missing[0]:#04x}), so a "
                "text that was begun might have no end; this constraint needs a byte-level vocabulary"
            )
        terms.deadline = math.inf  # from here on states are built while texts are generated
        super().__init__(terms, measure, vocabulary, limits)
        self.row_bytes = row_bytes
        self.max_tokens = measure.longest(start)
        self._strings = vocabulary.strings
        self._patterns = vocabulary.patterns
        self._out = np.empty((2, _FEW), np.int32)  # ids and needs
        self._numbers: dict[Config, int] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._rows: list[np.ndarray | None] = []
        self._walked: list[int] = []  # tokens that are enough after any of a state's row that were walked
        self._most: list[int] = []  # and after any of the row; -1: not known
        self._kept: deque[KeptRow] = deque()
        self._made: dict[tuple[int, ...], KeptRow] = {}
        self._pool = vocabulary.rows
        self._most_rows = max(row_bytes // (vocabulary.words * 4), 1)
        self._whole = Source(None, vocabulary.tree)
        self._pattern_tables: dict[tuple[int, int], weakref.ref[PatternTable]] = {}
        weakref.finalize(self, give_all, self._pool, self._kept, self._rows).atexit = False
        self._near: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._free_near: OrderedDict[tuple[int, int, int, int], np.ndarray] = OrderedDict()
        self._recipes: dict[int, Recipe] = {}
        self._wide: OrderedDict[int, Recipe] = OrderedDict()
        self._recipe_tokens = 0
        self._closing: dict[int, tuple[int, ...]] = {}
        first = self._state(start)
        self._number((first, int(self._states[first, loops.BASE]), 0, 0))

    def explore(self, states: int, seconds: float) -> None:
        """Make ahead of use, for at most `seconds` of this thread: up to `states` states, the rows of patterns, the first mask."""
        end = time.thread_time() + seconds
        done = 0
        while done < min(len(self._term), states):
            if self._states[done, loops.COUNT] < 0:
                self._build(done)
                pattern = self._pattern(done) if done < _PATTERN_ROWS else None
                if pattern is not None:
                    self._patterns.source(*pattern)
                if time.thread_time() > end:
                    break
            done += 1
        self.allowed(self.start)

    # asking

    @property
    def states(self) -> int:
        """States built so far, without those of any value, which a machine may begin with."""
        return len(self._term) - self._begun_with

    @property
    def nbytes(self) -> int:
        """Bytes of the tables in use (masks kept for reuse not counted)."""
        return (
            len(self._term) * self._states.itemsize * loops.WIDTH
            + self._used_arcs * self._arcs.itemsize * 5
            + self._used_dense * 1024
            + self._used_pushes * 4
            + int(self._used[loops.STACKS]) * (6 * 8 + 8)
            + self._orders.used_endings * 20
            + int(self._used[loops.SETS]) * 7 * 8
            + int(self._used[loops.MASK_WORDS]) * 8
        )

    @property
    def held_bytes(self) -> int:
        """About all that it keeps alive: the tables, Python's objects behind them, and what was noted in use."""
        notes = len(self._configs) + len(self._next) + len(self._closing) + len(self._recipes)
        return (
            self.nbytes
            + len(self._term) * _STATE_BYTES
            + self.terms.count * _TERM_BYTES
            + notes * _NOTE_BYTES
            + self._recipe_tokens * 8
            + (len(self._kept) + len(self._near) + len(self._free_near)) * self.vocabulary.words * 4
            + sum(len(r.ids) for r in self._wide.values()) * 8
        )

    @property
    def min_tokens(self) -> int:
        return self.tokens_to_end(self.start)

    def _number(self, config: Config) -> int:
        found = self._numbers.get(config)
        if found is None:
            found = self._numbers[config] = len(self._configs)
            self._configs.append(config)
            self._rows.append(None)
            self._walked.append(-1)
            self._most.append(-1)
        return found

    def step(self, state: int, token: int) -> int:
        """The state after `token`; -1 if it may not follow (end tokens lead nowhere)."""
        found = self._next.get((state, token))
        if found is None:
            data = self.vocabulary.tokens[token]
            if len(self._next) >= _MAX_STEPS:
                self._next.clear()
            found = self._next[state, token] = self.advance_bytes(state, data) if data else -1
        return found

    def advance_bytes(self, state: int, data: bytes) -> int:
        config = np.array((*self._configs[state], 0), np.int64)
        text = np.frombuffer(data, np.uint8)
        while True:
            status, at = loops.run(self._machine, text, config)
            if status == OK:
                a, b, c, d, _ = config.tolist()
                return self._number((a, b, c, d))
            if status == DEAD:
                return -1
            self._mend(status, at)

    def allowed(self, state: int) -> np.ndarray:
        """uint32 [words], read only: bit t is set if token t may follow; end tokens where the text may end."""
        row = self._rows[state]
        return row if row is not None else self._keep(state)

    def allowed_within(self, state: int, tokens: int) -> np.ndarray:
        """Like `allowed`, but only what still leaves a complete text within `tokens` tokens, this one included.

        Sound, and never empty while `tokens` is at least `tokens_to_end`; of longer ways to the end those
        are offered that `pushdown_loops.close` finds to be short enough.
        """
        most = self._most[state]
        if most < 0:
            if self._walked[state] < 0:
                self._keep(state)
            most = self._most[state] = max(self._walked[state], self._most_of_shared(self._configs[state]))
        left = tokens - 1 - int(self._stack[self._configs[state][3], loops.CLOSE])
        if left >= most:
            return self.allowed(state)
        row = self._near.get((state, tokens))
        if row is None:
            row = self._near[state, tokens] = self._row_within(state, self._recipe(state), left)
            if tokens < self.enough(state) or not row.any():
                self._add_way(row, state, tokens)
            self._add_ends(row, state)
            row.setflags(write=False)
            if len(self._near) * row.nbytes > self.row_bytes:
                self._near.popitem(last=False)
        return row

    def _row_within(self, state: int, recipe: Recipe, left: int) -> np.ndarray:
        """The tokens after which `left` tokens are enough for what stands above the stack."""
        shared = None if recipe.shared is None else self._shared_within(state, left)
        row = np.zeros(self.vocabulary.words, np.uint32) if shared is None else shared.copy()
        ids = recipe.ids[recipe.needs <= left]
        loops.set_bits(row, ids, len(ids))
        return row

    def _shared_within(self, state: int, left: int) -> np.ndarray:
        """Of a row's shared part."""
        config = at, place, count, _ = self._configs[state]
        if self._states[at, loops.KIND] == STRING:
            return self._strings.row_within(place, *self._bounds(config), left - 1)
        spelling = self._free_spelling(at, place, count)
        if spelling is None:
            pattern = self._pattern(at)
            assert pattern is not None
            distances, tail = self._behind_pattern(at, count)
            return self._patterns.row_within(*pattern, distances, left - tail)
        beyond = left - self._free_need(at, count)
        if beyond >= 0 or left <= 0:
            return self._strings.staying_within(self._inside.bases[spelling], beyond)
        key = (at, place, count, left)
        row = self._free_near.get(key)
        if row is None:  # some may be a shorter way to the end than free texts have
            row = self._free_near[key] = np.zeros(self.vocabulary.words, np.uint32)
            budget = left + int(self._stack[config[3], loops.CLOSE])
            self._tokens(config, self.vocabulary.tree, row, budget)
            row &= self._strings.staying(spelling)
            if len(self._free_near) > _FREE_ROWS:
                self._free_near.popitem(last=False)
        return row

    def _add_way(self, row: np.ndarray, state: int, tokens: int) -> None:
        """The first token of a short way to the end, if that takes at most `tokens`."""
        way = self._way_to_end(state)
        if way and len(way) <= tokens:
            self._closing[self.step(state, way[0])] = way[1:]
            for token in self.vocabulary.ids_of[self.vocabulary.tokens[way[0]]]:
                row[token >> 5] |= np.uint32(1 << (token & 31))

    def _keep(self, state: int) -> np.ndarray:
        """The state's row, made now."""
        at, place, count, top = self._configs[state]
        source = None
        if self._kinds[at] == STRING:
            source = self._string(at, place, count)
            if source.tree is None:
                assert source.shared is not None
                self._rows[state], self._walked[state] = source.shared, 0
                return source.shared
            key: tuple[int, ...] = (id(source), top)
        elif at == 0 and top == 0:
            self._rows[state], self._walked[state] = self.vocabulary.ends, 0
            return self.vocabulary.ends
        else:
            key = (at, place, count)
        kept = self._made.get(key)
        if kept is None:
            kept = self._fill(at, place, count, top, source or self._source(at, place, count, True), key)
        kept.states.append(state)
        self._rows[state], self._walked[state] = kept.row, kept.most
        return kept.row

    def _fill(
        self, at: int, place: int, count: int, top: int, source: Source, key: tuple[int, ...]
    ) -> KeptRow:
        if len(self._kept) >= self._most_rows:
            self._drop()
        kept, begin = self._pool.take(), 1
        while True:
            status, state, most, alone = loops.fill(
                self._machine, source.address, at, place, count, top, kept.address, begin
            )
            if status == OK:
                break
            self._mend(status, state)
            begin = 0
        kept.most = most
        if (
            self._kinds[at] == STRING or not alone
        ):  # of all states with this key, since no token looked at the stack
            kept.key, kept.shared = key, source
            self._made[key] = kept
        self._kept.append(kept)
        return kept

    def _drop(self) -> None:
        """Make room for a row."""
        kept = self._kept.popleft()
        for state in kept.states:
            self._rows[state] = None
        if kept.key is not None:
            del self._made[kept.key]
        self._pool.give(kept)

    def _source(self, at: int, place: int, count: int, by_names: bool = False) -> Source:
        """What the row of a place is made of; `by_names`: other names than certain ones in one, where that can be."""
        if self._kinds[at] == STRING:
            return self._string(at, place, count)
        spelling = self._free_spelling(at, place, count)
        if spelling is not None:
            if by_names and at in self._others and spelling == self._spellings[at]:
                return self._strings.names(spelling)
            return self._strings.free(spelling)
        pattern = self._pattern(at) if place == 0 else None
        return self._whole if pattern is None else self._patterns.source(*pattern)

    def _string(self, at: int, place: int, count: int) -> Source:
        low, high, base = self._lengths[at]
        room = (
            high - count - (place != base) if high >= 0 else -1
        )  # a character that was begun takes its place
        return self._strings.source(place, room, low - count)

    def _most_of_shared(self, config: Config) -> int:
        """Tokens that are enough after any token of a state's shared row."""
        at, place, count, _ = config
        if self._kinds[at] == STRING:
            return self._farthest_inside + max(self._bounds(config)[1], 0) + 1
        if self._free_spelling(at, place, count) is not None:
            return self._free_need(at, count, by_bytes=True) + self._farthest_inside
        pattern = self._pattern(at) if place == 0 else None
        if pattern is None:
            return 0
        distances, tail = self._behind_pattern(at, count)
        return distances.farthest(pattern[2]) + tail

    def _recipe(self, state: int) -> Recipe:
        recipe = self._recipes.get(state) or self._wide.get(state)
        if recipe is not None:
            return recipe
        recipe = self._make(state)
        if len(recipe.ids) > _FEW:
            self._wide[state] = recipe
            if len(self._wide) > _WIDE:
                self._wide.popitem(last=False)
            return recipe
        if len(self._recipes) >= _MAX_STEPS:
            self._recipes.clear()
            self._recipe_tokens = 0
        self._recipes[state] = recipe
        self._recipe_tokens += len(recipe.ids)
        return recipe

    def _add_ends(self, row: np.ndarray, state: int) -> None:
        if self.can_end(state):
            for end in self.vocabulary.eos:
                row[end >> 5] |= np.uint32(1 << (end & 31))

    def _bounds(self, config: Config) -> tuple[int, int]:
        """Of a string: characters that may still begin (-1: any number), and those that must still be completed."""
        at, place, count, _ = config
        low, high, base = self._lengths[at]
        begun = place != base  # that character takes its place
        return high - count - begun if high >= 0 else -1, low - count

    def _make(self, state: int) -> Recipe:
        config = self._configs[state]
        if self.must_end(state):
            return Recipe(None, _NONE, _NONE)
        source = self._source(*config[:3])
        if source.tree is None:
            return Recipe(source.shared, _NONE, _NONE)
        if not source.closing:
            return Recipe(source.shared, *self._tokens(config, source.tree))
        after = self._after_string(config[3])
        ids, needs = self._tokens(after, source.tree)
        close = int(
            self._stack[after[3], loops.CLOSE] - self._stack[config[3], loops.CLOSE]
        )  # of what it has left
        return Recipe(source.shared, ids, needs + np.int32(close))

    def _free_spelling(self, at: int, place: int, held: int) -> int | None:
        """Of a place where any text of a string may follow (see `Terms.mark_free`)."""
        spelling = self._spellings[at]
        if spelling is None or (place and self._kinds[at] != NAME):
            return None
        return self._orders.free_spelling(self._term[at], held) if self._has_set[at] else spelling

    def _pattern(self, at: int) -> tuple[PatternTable, int, int] | None:
        """(table, state, characters so far) inside of a string that has a pattern."""
        data = self.terms.data(self._term[at])
        while data[0] == CAT:
            data = self.terms.data(data[1])
        if data[0] != STATE:
            return None
        table = self._table(data[1], data[2])
        return None if table is None else (table, data[2], data[3])

    def _behind_pattern(self, at: int, held: int) -> tuple[Distances, int]:
        """The distances of a pattern's automaton, and tokens that are enough for what follows its texts."""
        data, tail = self.terms.data(self._term[at]), 0
        if self._has_set[at]:
            tail = self._orders.must_come(held)[1]
        while data[0] == CAT:
            tail += self._behind(data[2])[1]
            data = self.terms.data(data[1])
        return self.measure.distances(data[1]), tail

    def _table(self, index: int, state: int) -> PatternTable | None:
        """Of an automaton, for a state of it; None if rows there are not worth one, or it would be too large."""
        found = self._pattern_tables.get((index, state))
        table = found() if found is not None else None
        if table is None:  # or it was dropped since
            automaton = self.terms.automaton_of(index)
            if self._patterns.is_wide(automaton, state):
                table = self._patterns.table(automaton)
            if table is not None:
                self._pattern_tables[index, state] = weakref.ref(table)
        return table

    def _free_need(self, at: int, held: int, by_bytes: bool = False) -> int:
        """Tokens that are enough to complete a free state after whole characters inside of its string.

        by_bytes  fixed text is not spelled but counts a token a byte: more than enough, and known sooner
        """
        term, beside = self._term[at], (0, 0)
        if self._has_set[at]:
            beside = self._orders.must_come(held)
        return self._need_of(term, beside, by_bytes)

    def _need_of(self, term: int, beside: tuple[int, int], by_bytes: bool) -> int:
        """Of a free term; `beside`: bytes and tokens, at most, of what follows it by the set beside it."""
        own = self.terms.free_need(term)
        if own is not None:
            return own + beside[1]
        data = self.terms.data(term)
        if data[0] == STATE:
            return self.measure.distances(data[1]).farthest(0) + beside[1]
        if data[0] == CAT:
            return self._need_of(data[1], beside, by_bytes) + self._behind(data[2])[1]
        return max(
            self._part_need(term, p, beside, by_bytes) for p in data[1]
        )  # the shortest text may be any one's

    def _part_need(self, free: int, part: int, beside: tuple[int, int], by_bytes: bool) -> int:
        """Tokens that are enough for the rest of a shortest text that is one of this part of a free term."""
        if self.terms.free_spelling(part) is not None:
            return self._need_of(part, beside, by_bytes)
        leading = self.terms.leading_literal(part)
        if leading is None:  # it has no more bytes than the free ones
            return self._free_bytes(free) + beside[0]
        text = leading[0]
        spelled = len(text) if by_bytes else int(self.vocabulary.spelling.suffixes(text).max())
        return spelled + self._behind(leading[1])[1] + beside[1]

    def _behind(self, term: int) -> tuple[int, int]:
        """Bytes and tokens that are enough for a term behind a free one, to where a set beside it says what is left."""
        if self.terms.takes(term):
            return self._orders.farthest(term)
        return self.measure.shortest(term), self._spelled.enough(term)

    def _free_bytes(self, term: int) -> int:
        """Like `_free_need`, in bytes."""
        own = self.terms.free_need(term)
        if own is not None:
            return own
        data = self.terms.data(term)
        if data[0] == STATE:
            return self.measure.distances(data[1]).farthest(0)
        if data[0] == CAT:
            return self._free_bytes(data[1]) + self._behind(data[2])[0]
        free = [self._free_bytes(p) for p in data[1] if self.terms.free_spelling(p) is not None]
        return max(free) if self.terms.takes(term) else min(free)  # a set may leave any one of them

    def _tokens(
        self, config: Config, tree: WalkTree, row: np.ndarray | None = None, budget: int = loops.NO_BUDGET
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of `tree` that can follow `config`, and what each leaves to do above the stack."""
        row = np.zeros(self.vocabulary.words, np.uint32) if row is None else row
        while True:
            ids, needs = self._out
            self._progress[: len(_BEGIN)] = _BEGIN
            while True:
                status, state = loops.walk(
                    self._machine, tree.address, *config, self._path, budget, row, ids, needs, self._progress
                )
                if status == OK:
                    break
                self._mend(status, state)
            found = int(self._progress[loops.FOUND])
            if found <= len(ids):
                return ids[:found].copy(), needs[:found].copy()
            self._out = np.empty((2, found), np.int32)

    # the end

    def tokens_to_end(self, state: int) -> int:
        """Tokens of a short way to a complete text (the shortest in bytes, in as few tokens as spell it)."""
        return len(self._way_to_end(state))

    def enough(self, state: int) -> int:
        """No fewer than `tokens_to_end`, and quickly known (`pushdown_loops.close`)."""
        return int(loops.close(self._machine, *self._configs[state]))

    def _way_to_end(self, state: int) -> tuple[int, ...]:
        found = self._closing.get(state)
        if found is None:
            if len(self._closing) >= _MAX_STEPS:
                self._closing.clear()
            found = self._closing[state] = self.vocabulary.spelling.tokens(self.closing_text(state))
        return found
