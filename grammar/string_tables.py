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


@dataclass(frozen=True, eq=False)
class Inside:
    """The automaton of a string's characters: place 0 is between two characters.

    table  int16 [places, 256]; -1 where the byte cannot follow
    need   int64 [places]: bytes until the character is complete
    """

    table: np.ndarray
    need: np.ndarray


@cache
def inside() -> Inside:
    terms = Terms()
    char = JsonText(terms).char
    fsm = Fsm.of_terms(terms, terms.repeat(char, 0, -1))
    assert fsm.accepting[0] and fsm.accepting.sum() == 1
    return Inside(fsm.byte_table.astype(np.int16), fsm.distance.astype(np.int64))


class StringTables:
    """Rows of one vocabulary, each made when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        places = len(inside().table)
        self._walks: list[tuple[np.ndarray, np.ndarray] | None] = [None] * places
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        self._most: dict[int, int] = {}

    def _walk(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._walks[place]
        if found is None:
            trie = self.vocabulary.trie
            starts, exits = loops.string_walk(
                trie.byte,
                trie.depth,
                trie.skip,
                trie.unique,
                trie.count,
                inside().table,
                place,
                trie.max_depth,
            )
            found = self._walks[place] = (starts, exits)
            self._most[place] = int(starts.max(initial=0))
        return found

    def row(self, place: int, room: int) -> np.ndarray:
        """uint32 [words]: tokens that stay inside a string with room for `room` more characters (-1: any)."""
        starts, _ = self._walk(place)
        if room < 0 or room >= self._most[place]:
            room = -1
        found = self._rows.get((place, room))
        if found is None:
            trie = self.vocabulary.trie
            fits = (starts >= 0) & ((starts <= room) | (room < 0))
            bits = np.zeros(self.vocabulary.words * 32, np.bool_)
            bits[trie.ids] = np.repeat(fits, np.diff(trie.offsets))
            found = np.packbits(bits, bitorder="little").view(np.uint32)
            found.setflags(write=False)
            self._rows[place, room] = found
        return found

    def exits(self, place: int, room: int, missing: int) -> np.ndarray:
        """Nodes of the tree that close the string: within `room`, with at least `missing` characters completed."""
        _, exits = self._walk(place)
        if room < 0 and missing <= 0:
            return exits[:, 0]
        good = exits[:, 2] >= missing
        if room >= 0:
            good &= exits[:, 1] <= room
        return exits[good, 0]
