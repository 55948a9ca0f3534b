"""What tokens do inside of a JSON string: known once for a vocabulary, used by every constraint.

Nearly every token may stand in a string, so a mask there is a row that all constraints share, and only
the few tokens that hold the closing quote depend on what comes after the string.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from grammar import pushdown_loops as loops
from grammar.fsm import Fsm
from grammar.schema.text import JsonText
from grammar.terms import Terms
from grammar.vocabulary import Vocabulary

_MAX_ROWS = 1024
NEVER = 1 << 30  # characters missing: the string cannot be closed


@dataclass(frozen=True, eq=False)
class Inside:
    """Two automata of a string's characters, one behind the other: any spelling, then the one spelling.

    table  int16 [places, 256]; -1 where the byte cannot follow
    need   int64 [places]: bytes until the character is complete
    base   int64 [places]: the place between two characters of the automaton that a place belongs to
    bases  the two places between characters
    """

    table: np.ndarray
    need: np.ndarray
    base: np.ndarray
    bases: tuple[int, int]


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
        self._walks: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None] = [None] * places
        self._rows: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._most: dict[int, int] = {}
        self._free: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _walk(self, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = self._walks[place]
        if found is None:
            trie = self.vocabulary.trie
            starts, exits, stays = loops.string_walk(
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
            found = self._walks[place] = (starts, exits, stays)
            self._most[place] = int(starts.max(initial=0))
        return found

    def row(self, place: int, room: int, missing: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that a string takes at `place`, and where in the tree what follows the string decides.

        room      characters that may still begin; -1: any number
        missing   characters that must still be completed before the closing quote

        Returns uint32 [words] of the tokens that stay inside or end with the closing quote, and int32
        [subtrees, 3] (first node, end, depth of the node above) of those that go on behind the quote.
        """
        starts, exits, _ = self._walk(place)
        if room < 0 or room >= self._most[place]:
            room = -1
        missing = max(missing, 0)
        found = self._rows.get((place, room, missing))
        if found is None:
            trie = self.vocabulary.trie
            fits = (starts >= 0) & ((starts <= room) | (room < 0))
            good = exits[:, 2] >= missing
            if room >= 0:
                good &= exits[:, 1] <= room
            closing = exits[good, 0]
            ends = trie.unique[closing]
            fits[ends[ends >= 0]] = True
            row = np.zeros(self.vocabulary.words, np.uint32)
            loops.string_row(fits, trie.offsets, trie.ids, row)
            row.setflags(write=False)
            deeper = closing[trie.skip[closing] > closing + 1]
            subtrees = np.stack([deeper + 1, trie.skip[deeper], trie.depth[deeper]], axis=1).astype(np.int32)
            if len(self._rows) >= _MAX_ROWS:
                self._rows.clear()
            found = self._rows[place, room, missing] = (row, subtrees)
        return found

    def free(self, spelling: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For strings in any spelling (0) or their one spelling (1): the row of tokens that stay inside,
        whether the string goes on at each node of the tree, and the next node from each on that closes it."""
        found = self._free.get(spelling)
        if found is None:
            base = inside().bases[spelling]
            row, _ = self.row(base, -1, NEVER)
            _, exits, stays = self._walk(base)
            nodes = len(stays)
            where = np.append(exits[:, 0], nodes)
            next_exit = where[np.searchsorted(where, np.arange(nodes + 1))].astype(np.int32)
            found = self._free[spelling] = (row, stays, next_exit)
        return found
