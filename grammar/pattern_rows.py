"""Which tokens may follow inside of a string that has a pattern, known without a walk over the vocabulary.

Most tokens have only bytes that stand for themselves in a JSON string. What such a token does to a pattern depends on
the classes of its bytes alone, and the strings of classes are few: so these are walked, and a row is looked up from
them. The other tokens (with a quote, a backslash or a control character) are left to the machine. Tables and rows
belong to the vocabulary; every constraint with the same pattern uses them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from grammar.automaton_terms import Automaton
from grammar.byte_masks import CONTINUATION, bits
from grammar.measure import Distances
from grammar.schema.text import SPELLED
from grammar.token_classes import class_trie, mask_by_class, mask_by_members, members_by_class
from grammar.trie import TokenTrie
from grammar.vocabulary import Vocabulary
from grammar.walk_tree import Source, WalkTree

_TABLE_BYTES, _ROWS = 64 << 20, 1024  # that are kept: of all tables, and how many rows
_NARROW = 1 << 13  # tokens; rows with fewer are set token by token
_WIDE = 12  # bytes; where fewer can follow a walk is quick
_LARGEST = 1 << 22  # entries of an automaton's table
_SPELLED = frozenset(SPELLED)
_ANY, _ANY_ROW = np.zeros((0, 0), np.int64), np.zeros(1, np.int32)  # no distance is asked for


@dataclass(frozen=True, eq=False)
class PatternTable:
    """An automaton over classes of bytes, and the vocabulary as strings of these.

    next           int32 [states, classes]; -1 for none
    begins         bool [classes]: such a byte begins a character
    fewest, most   int64 [states]: see `Automaton`
    node_class, child, sibling   the tree of class strings
    string_of      uint8, uint16 or int32 [tokens]: which node's string, 0 for a token that is none
    strings        int32 []: the node of each string
    """

    automaton: Automaton
    next: np.ndarray
    begins: np.ndarray
    fewest: np.ndarray
    most: np.ndarray
    node_class: np.ndarray
    child: np.ndarray
    sibling: np.ndarray
    string_of: np.ndarray
    strings: np.ndarray

    @property
    def nbytes(self) -> int:
        """With `members`, which are made when they are needed."""
        arrays = (self.next, self.node_class, self.child, self.sibling, self.string_of, self.strings)
        return sum(a.nbytes for a in arrays) + 4 * (len(self.string_of) + len(self.strings))

    def place(self, state: int, count: int, longest: int) -> tuple[int, int]:
        """Places with the same row have the same name; no token has more than `longest` characters."""
        a = self.automaton
        if not a.fewest or (not self.ends and count >= a.low and a.high < 0):
            return state, -1
        if not self.ends and a.high >= 0 and a.high - count >= longest + self.farthest:
            return state, -1
        return state, count

    @cached_property
    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of each string: offsets, ids."""
        offsets, members = members_by_class(self.string_of, len(self.strings))
        return offsets, members

    @cached_property
    def ends(self) -> bool:
        """Is there a state from which texts have a longest length?"""
        return bool((self.most >= 0).any())

    @cached_property
    def farthest(self) -> int:
        return int(self.fewest.max())


def _special(token: bytes) -> bool:
    return not _SPELLED.isdisjoint(token)


class PatternRows:
    """Rows of one vocabulary, each made when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tables: OrderedDict[tuple, PatternTable | None] = OrderedDict()
        self._near: OrderedDict[tuple[int, ...], tuple[PatternTable, Distances, np.ndarray]] = OrderedDict()
        self._rows: OrderedDict[tuple[int, ...], tuple[PatternTable, Source]] = OrderedDict()
        self.nbytes = 0

    @cached_property
    def plain(self) -> TokenTrie:
        """The tokens whose bytes all stand for themselves."""
        return TokenTrie.of([b"" if _special(t) else t for t in self.vocabulary.tokens])

    @cached_property
    def others(self) -> WalkTree:
        return WalkTree.ends([(i, t) for i, t in enumerate(self.vocabulary.tokens) if t and _special(t)])

    def warm_up(self) -> None:
        """Make what every pattern needs."""
        assert len(self.others.byte) and self.plain.max_depth >= 0

    @staticmethod
    def is_wide(automaton: Automaton, state: int) -> bool:
        """Can so many bytes follow in a string's text that a row is worth its table?"""
        if automaton.spelled.keys() != _SPELLED:
            return False
        following = 0
        for mask, _ in automaton.rows[state]:
            following |= mask
        return following.bit_count() > _WIDE

    def table(self, automaton: Automaton) -> PatternTable | None:
        """None for an automaton that is too large."""
        key = (automaton.rows, automaton.low, automaton.high)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        found = self._tables[key] = self._make(automaton)
        self.nbytes += found.nbytes if found is not None else 0
        while self.nbytes > _TABLE_BYTES and len(self._tables) > 1:
            _, gone = self._tables.popitem(last=False)
            if gone is not None:
                self.nbytes -= gone.nbytes
                for place in [p for p, (table, _) in self._rows.items() if table is gone]:
                    del self._rows[place]
                for near in [p for p, (table, _, _) in self._near.items() if table is gone]:
                    del self._near[near]
        return found

    def source(self, table: PatternTable, state: int, count: int) -> Source:
        """What may follow in a state after `count` characters: `shared` has the plain tokens, the tree the others."""
        key = (id(table), *table.place(state, count, self.plain.max_depth))
        found = self._rows.get(key)
        if found is not None:
            self._rows.move_to_end(key)
            return found[1]
        low, high = (table.automaton.low, table.automaton.high) if key[2] >= 0 else (0, -1)
        row = self._row(table, self._live(table, state, count, low, high, _ANY, _ANY_ROW, 0))
        source = Source(row, self.others)
        self._rows[key] = (table, source)
        if len(self._rows) > _ROWS:
            self._rows.popitem(last=False)
        return source

    def row(self, table: PatternTable, state: int, count: int) -> np.ndarray:
        """uint32 [words], read only: the plain tokens that may follow in a state after `count` characters."""
        found = self.source(table, state, count).shared
        assert found is not None
        return found

    def row_within(
        self, table: PatternTable, state: int, count: int, distances: Distances, left: int
    ) -> np.ndarray:
        """Of these the tokens after which the text can be accepted at a distance of at most `left`."""
        if left >= distances.farthest(count):
            return self.row(table, state, count)
        a = table.automaton
        key = (id(table), state, count if a.fewest else -1, left, id(distances))
        found = self._near.get(key)
        if found is None:
            live = self._live(table, state, count, a.low, a.high, *distances.table, left)
            found = self._near[key] = (table, distances, self._row(table, live))
            if len(self._near) > _ROWS:
                self._near.popitem(last=False)
        self._near.move_to_end(key)
        return found[2]

    def _live(
        self, table: PatternTable, state: int, count: int, low: int, high: int,
        distance: np.ndarray, row_of: np.ndarray, left: int,
    ) -> np.ndarray:  # fmt: skip
        live = np.zeros(len(table.node_class), np.bool_)
        live_strings(
            table.next, table.begins, table.fewest, table.most, low, high,
            table.node_class, table.child, table.sibling, self.plain.max_depth, state, count,
            distance, row_of, left, live,
        )  # fmt: skip
        return live

    def _row(self, table: PatternTable, live: np.ndarray) -> np.ndarray:
        row = np.empty(self.vocabulary.words, np.uint32)
        taken = live[table.strings]
        offsets, members = table.members
        if int(np.diff(offsets)[taken].sum()) < _NARROW:
            mask_by_members(taken, offsets, members, row)
        else:
            mask_by_class(taken, table.string_of, row)
        row.setflags(write=False)
        return row

    def _make(self, automaton: Automaton) -> PatternTable | None:
        states = len(automaton.rows)
        masks = {m & part for row in automaton.rows for m, _ in row for part in (CONTINUATION, ~CONTINUATION)}
        masks = {m for m in masks if m}
        member = np.zeros((len(masks) + 1, 256), np.uint8)
        for i, mask in enumerate(masks):
            member[i] = np.unpackbits(np.frombuffer(mask.to_bytes(32, "little"), np.uint8), bitorder="little")
        _, sample, class_of = np.unique(member, axis=1, return_index=True, return_inverse=True)
        class_of = class_of.reshape(-1).astype(np.uint8)
        classes = len(sample)
        if states * classes > _LARGEST:
            return None
        columns: dict[int, list[int]] = {}
        table = np.full((states, classes), -1, np.int32)
        for state, row in enumerate(automaton.rows):
            for mask, goal in row:
                where = columns.get(mask)
                if where is None:
                    where = columns[mask] = sorted({int(class_of[b]) for b in bits(mask)})
                table[state, where] = goal
        begins = (sample & 0xC0) != 0x80
        live = np.any(table >= 0, axis=0)
        trie = self.plain
        node_class, child, sibling, _, node_of = class_trie(
            trie.byte, trie.depth, trie.skip, trie.unique, trie.count, class_of, live, trie.max_depth
        )
        ends = np.zeros(len(node_class), np.bool_)
        ends[node_of[node_of >= 0]] = True
        number = np.cumsum(ends, dtype=np.int32)  # of each string; 0 is that of tokens that are none
        strings = np.append(0, np.flatnonzero(ends)).astype(np.int32)
        kind = np.uint8 if len(strings) <= 256 else np.uint16 if len(strings) <= 1 << 16 else np.int32
        string_of = np.append(np.where(node_of >= 0, number[node_of], 0), 0).astype(kind)[trie.unique_of]
        string_of.setflags(write=False)
        counted = bool(automaton.fewest)
        return PatternTable(
            automaton, table, begins,
            np.array(automaton.fewest if counted else [0] * states, np.int64),
            np.array(automaton.most if counted else [-1] * states, np.int64),
            node_class, child, sibling, string_of, strings,
        )  # fmt: skip


@njit(cache=True)
def live_strings(  # type: ignore[no-untyped-def]
    table, begins, fewest, most, low, high, node_class, child, sibling, max_depth, start, count,
    distance, row_of, left, live
):  # fmt: skip
    """Mark the nodes whose strings of classes can follow in state `start` after `count` characters.

    distance, row_of   `Distances.table`; where that is not empty only what leads to a distance of at most `left`
    """
    node = np.empty(max_depth + 2, np.int32)
    state = np.empty(max_depth + 2, np.int32)
    counts = np.empty(max_depth + 2, np.int64)
    d = 0
    node[0] = child[0]
    state[0] = start
    counts[0] = count
    while d >= 0:
        n = node[d]
        if n < 0:
            d -= 1
            continue
        node[d] = sibling[n]
        c = node_class[n]
        goal = table[state[d], c]
        if goal < 0:
            continue
        after = counts[d] + (1 if begins[c] else 0)
        if high >= 0 and after + fewest[goal] > high:
            continue
        if most[goal] >= 0 and after + most[goal] < low:
            continue
        live[n] = len(distance) == 0 or distance[row_of[min(after, len(row_of) - 1)], goal] <= left
        if child[n] >= 0:
            d += 1
            node[d] = child[n]
            state[d] = goal
            counts[d] = after
