"""What tokens do inside of a JSON string: known once for a vocabulary, used by every constraint.

Nearly every token may stand in a string, so a mask there is a row that all constraints share, and only
the few tokens that hold the closing quote depend on what comes after the string.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from grammar import pushdown_loops as loops
from grammar.fsm import Fsm
from grammar.schema.text import JsonText
from grammar.terms import Terms
from grammar.vocabulary import Vocabulary
from grammar.walk_tree import Source, WalkTree

_MAX_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Inside:
    """Two automata of a string's characters, one behind the other: any spelling, then the one spelling.

    table  int16 [places, 256]; -1 where the byte cannot follow
    need   int64 [places]: bytes until the character is complete
    base   int64 [places]: the place between two characters of the automaton that a place belongs to
    bases  the two places between characters
    farthest   the largest need
    """

    table: np.ndarray
    need: np.ndarray
    base: np.ndarray
    bases: tuple[int, int]

    @property
    def farthest(self) -> int:
        return int(self.need.max())


class Walk(NamedTuple):
    """What `pushdown_loops.string_walk` says of each byte string, and the nodes with a closing quote."""

    starts: np.ndarray
    complete: np.ndarray
    places: np.ndarray
    exits: np.ndarray


@cache
def inside() -> Inside:
    terms = Terms()
    text = JsonText(terms)
    tables, needs, bases, count = [], [], [], 0
    for char in (text.char, text.spelled_char):
        fsm = Fsm.of_terms(terms, terms.repeat(char, 0, -1))
        assert fsm.accepting[0] and fsm.accepting.sum() == 1
        tables.append(np.where(fsm.byte_table >= 0, fsm.byte_table + count, -1))
        needs.append(fsm.distance)
        bases.append(np.full(fsm.states, count))
        count += fsm.states
    return Inside(
        np.vstack(tables).astype(np.int16),
        np.concatenate(needs),
        np.concatenate(bases),
        (0, int(bases[1][0])),
    )


class StringTables:
    """Rows of one vocabulary, each made when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        places = len(inside().table)
        self._walks: list[Walk | None] = [None] * places
        self._rows: dict[tuple[int, int, int], Source] = {}
        self._stay: dict[tuple[int, int], np.ndarray] = {}
        self._stay_near: dict[tuple[int, int, int], np.ndarray] = {}
        self._near: dict[tuple[int, int, int, int], np.ndarray] = {}
        self._behind: dict[bytes, WalkTree | None] = {}
        self._most: dict[int, int] = {}  # characters that a token begins
        self._last: dict[int, int] = {}  # and one more than those that one completes before the closing quote
        self._free: dict[int, Source] = {}
        self._names: dict[int, Source] = {}

    def _walk(self, place: int) -> Walk:
        found = self._walks[place]
        if found is None:
            trie = self.vocabulary.trie
            arrays = loops.string_walk(
                trie.byte,
                trie.depth,
                trie.skip,
                trie.unique,
                trie.count,
                inside().table,
                place,
                int(inside().base[place]),
                trie.max_depth,
            )
            found = self._walks[place] = Walk(*arrays)
            self._most[place] = int(found.starts.max(initial=0))
            self._last[place] = int(found.exits[:, 2].max(initial=0)) + 1
        return found

    def source(self, place: int, room: int, missing: int) -> Source:
        """Tokens that a string takes at `place`, and the tokens of which what follows the string decides.

        room      characters that may still begin; -1: any number
        missing   characters that must still be completed before the closing quote

        `shared` has the tokens that stay inside or end with the closing quote, and the tree what the others
        have behind the quote.
        """
        if self._walks[place] is None:
            self._walk(place)
        if room < 0 or room >= self._most[place]:
            room = -1
        missing = min(max(missing, 0), self._last[place])
        found = self._rows.get((place, room, missing))
        if found is None:
            exits = self._walk(place).exits
            good = exits[:, 2] >= missing
            if room >= 0:
                good &= exits[:, 1] <= room
            closing = exits[good, 0]
            row = self._staying(place, room).copy()
            self._add_closing(row, closing)
            row.setflags(write=False)
            if len(self._rows) >= _MAX_ROWS:
                self._rows.clear()
            found = self._rows[place, room, missing] = Source(row, self._behind_quote(closing), closing=True)
        return found

    def _add_closing(self, row: np.ndarray, closing: np.ndarray) -> None:
        """The tokens that end with the closing quote at these nodes."""
        trie = self.vocabulary.trie
        for unique in trie.unique[closing].tolist():
            if unique >= 0:
                ids = trie.ids[trie.offsets[unique] : trie.offsets[unique + 1]]
                loops.set_bits(row, ids, len(ids))

    def shared(self, place: int, room: int, missing: int) -> np.ndarray:
        """uint32 [words], read only: the tokens that `source` does not walk."""
        found = self.source(place, room, missing).shared
        assert found is not None
        return found

    def row_within(self, place: int, room: int, missing: int, left: int) -> np.ndarray:
        """Of the row of `shared` the tokens after which `left` bytes are enough to complete the string but for its closing quote.

        left   -1: only those that end with the closing quote
        """
        walk = self._walk(place)
        most = self._most[place]
        room = -1 if room < 0 or room >= most else room
        beyond = max(missing - most - 1, 0)  # no token comes near these
        missing, left = max(missing, 0) - beyond, left - beyond
        if left >= missing + inside().farthest:
            return self.shared(place, room, missing)
        key = (place, room, missing, max(left, -2))
        found = self._near.get(key)
        if found is None:
            found = self.staying_within(place, left, missing) & self._staying(place, room)
            if left >= -1:
                good = walk.exits[:, 2] >= missing
                if room >= 0:
                    good &= walk.exits[:, 1] <= room
                self._add_closing(found, walk.exits[good, 0])
            found.setflags(write=False)
            if len(self._near) >= _MAX_ROWS:
                self._near.clear()
            self._near[key] = found
        return found

    def staying_within(self, place: int, left: int, missing: int = 0) -> np.ndarray:
        """The tokens that stay inside of a string, after which `left` bytes are enough to complete what is missing."""
        left = min(max(left, -1), missing + inside().farthest)
        found = self._stay_near.get((place, left, missing))
        if found is None:
            if len(self._stay_near) >= _MAX_ROWS:
                self._stay_near.clear()
            walk, trie = self._walk(place), self.vocabulary.trie
            need, base = inside().need, inside().base
            begun = np.arange(len(base)) != base
            needs = need[walk.places] + np.maximum(missing - walk.complete - begun[walk.places], 0)
            found = self._stay_near[place, left, missing] = np.zeros(self.vocabulary.words, np.uint32)
            loops.string_row((walk.starts >= 0) & (needs <= left), trie.offsets, trie.ids, found)
            found.setflags(write=False)
        return found

    def staying(self, spelling: int) -> np.ndarray:
        """uint32 [words], read only: the tokens that stay inside of a string in any (0) or its one spelling (1)."""
        return self._staying(inside().bases[spelling], -1)

    def _staying(self, place: int, room: int) -> np.ndarray:
        """The tokens that stay inside of a string."""
        found = self._stay.get((place, room))
        if found is None:
            starts, trie = self._walk(place).starts, self.vocabulary.trie
            found = self._stay[place, room] = np.zeros(self.vocabulary.words, np.uint32)
            loops.string_row((starts >= 0) & ((starts <= room) | (room < 0)), trie.offsets, trie.ids, found)
            found.setflags(write=False)
        return found

    def warm_up(self) -> None:
        """Make the rows of strings that have no bounds, or are near their longest length."""
        for spelling, base in enumerate(inside().bases):
            self.free(spelling)
            for left in range(inside().farthest + 1):
                self.staying_within(base, left)
            self.names(spelling)
            for room in range(self._most[base]):
                self.source(base, room, 0)
            for missing in range(self._last[base] + 1):
                self.source(base, -1, missing)
        for place in range(len(inside().table)):
            self.source(place, -1, 0)

    def _behind_quote(self, closing: np.ndarray) -> WalkTree | None:
        """What tokens that close a string at these nodes have behind the quote."""
        key = closing.tobytes()
        if key not in self._behind:
            if len(self._behind) >= _MAX_ROWS:
                self._behind.clear()
            depth = self.vocabulary.trie.depth
            left = [
                (token, data[int(depth[node]) :])
                for node in closing.tolist()
                for token, data in self._below(node)
                if len(data) > depth[node]
            ]
            self._behind[key] = WalkTree.ends(left) if left else None
        return self._behind[key]

    def _below(self, node: int) -> Iterator[tuple[int, bytes]]:
        """The tokens of a subtree, with their bytes."""
        trie = self.vocabulary.trie
        ends = trie.unique[node : trie.skip[node]]
        for unique in ends[ends >= 0].tolist():
            for token in trie.ids[trie.offsets[unique] : trie.offsets[unique + 1]].tolist():
                yield token, self.vocabulary.tokens[token]

    def free(self, spelling: int) -> Source:
        """For strings in any spelling (0) or their one spelling (1): the row of tokens that stay inside, and the tree of
        those that close the string."""
        found = self._free.get(spelling)
        if found is None:
            base = inside().bases[spelling]
            row = self.staying(spelling)
            exits = self._walk(base).exits
            leaving = [pair for node in exits[:, 0].tolist() for pair in self._below(node)]
            found = self._free[spelling] = Source(row, WalkTree.ends(leaving))
        return found

    def names(self, spelling: int) -> Source:
        """Like `free`, of names, the others than certain ones in one: what these close with depends on what follows the quote alone."""
        found = self._names.get(spelling)
        if found is None:
            closed = self.source(inside().bases[spelling], -1, 0)
            found = self._names[spelling] = Source(closed.shared, closed.tree, True, self.free(spelling).tree)
        return found
