"""A finite constraint over token ids: which tokens may follow, and where each one leads.

`next[state, class_of[token]]` is the whole automaton: -1 forbids the token. A state is kept only if its
text can still be finished with tokens of the vocabulary, so a mask is never empty before the end. End
tokens are outside of the table: they are allowed exactly in accepting states.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from grammar import token_classes as kernels
from grammar.constraint_errors import TooLarge, Unsatisfiable
from grammar.fsm import Fsm
from grammar.vocabulary import Vocabulary

_MAX_WORK = 1 << 31
_NARROW = 1 << 13  # tokens; masks with fewer are set token by token


@dataclass(frozen=True, eq=False)
class TokenFsm:
    """
    next       int16 or int32 [states, classes]; column 0 is the class of tokens that no state takes
    class_of   uint8, uint16 or int32 [tokens]
    distance   int32 [states]: tokens of the shortest way to acceptance
    longest    tokens of the longest text; None if there is no longest
    """

    fsm: Fsm
    vocabulary: Vocabulary
    next: np.ndarray
    class_of: np.ndarray
    distance: np.ndarray
    longest: int | None
    row_bytes: int = 8 << 20  # masks kept for reuse
    _rows: list[np.ndarray | None] = field(init=False, repr=False)
    _kept: deque[int] = field(init=False, repr=False)
    _near: OrderedDict[tuple[int, int], np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", [None] * len(self.next))
        object.__setattr__(self, "_kept", deque())
        object.__setattr__(self, "_near", OrderedDict())
        for array in (self.next, self.class_of, self.distance):
            array.setflags(write=False)

    @staticmethod
    def of(fsm: Fsm, vocabulary: Vocabulary, max_table_bytes: int = 256 << 20) -> TokenFsm:
        """Raises Unsatisfiable if no text, or none that the vocabulary can spell, is accepted."""
        if fsm.is_empty:
            raise Unsatisfiable("no text matches the constraint")
        trie = vocabulary.trie
        live = np.any(fsm.table >= 0, axis=0)
        node_class, child, sibling, parent, node_of = kernels.class_trie(
            trie.byte, trie.depth, trie.skip, trie.unique, trie.count, fsm.class_of, live, trie.max_depth
        )
        if fsm.states * len(node_class) > _MAX_WORK:
            raise TooLarge(
                f"{fsm.states:,} states would each be walked over {len(node_class):,} strings of classes"
            )
        terminal = np.zeros(len(node_class), np.bool_)
        terminal[node_of[node_of >= 0]] = True
        sums = kernels.hash_columns(fsm.table, node_class, child, sibling, terminal, trie.max_depth)
        class_of_node, samples = kernels.group_columns(sums, terminal)
        if fsm.states * len(samples) * 4 > max_table_bytes:
            raise TooLarge(
                f"the token table needs {fsm.states:,} states x {len(samples):,} token classes, more than "
                f"{max_table_bytes >> 20} MiB"
            )
        table = kernels.fill_table(fsm.table, node_class, parent, samples, trie.max_depth)
        distance = kernels.token_distance(table, fsm.accepting)
        if distance[0] < 0:
            raise Unsatisfiable("the vocabulary has no tokens that spell a text that the constraint accepts")
        if (distance < 0).any():
            table[(table >= 0) & (distance[table] < 0)] = -1
        class_of_unique = np.append(np.where(node_of >= 0, class_of_node[node_of], 0), 0)
        class_of = class_of_unique[trie.unique_of]
        longest = int(kernels.longest_path(table, fsm.accepting))
        return TokenFsm(
            fsm,
            vocabulary,
            table.astype(np.int16) if fsm.states < 1 << 15 else table,
            class_of.astype(
                np.uint8 if len(samples) <= 256 else np.uint16 if len(samples) <= 1 << 16 else np.int32
            ),
            distance,
            longest if longest >= 0 else None,
        )

    @property
    def states(self) -> int:
        return len(self.next)

    @property
    def classes(self) -> int:
        """Token classes, the one that nothing takes included."""
        return int(self.next.shape[1])

    @cached_property
    def farthest(self) -> int:
        """Tokens that the shortest way to acceptance takes from the worst of all states."""
        return int(self.distance.max())

    @property
    def nbytes(self) -> int:
        """Bytes of the tables (masks kept for reuse not counted)."""
        return self.next.nbytes + self.class_of.nbytes + self.distance.nbytes

    @property
    def held_bytes(self) -> int:
        """About all that it keeps alive: the tables and the masks kept for reuse."""
        return (
            self.nbytes
            + len(self._rows) * 8
            + (len(self._kept) + len(self._near)) * self.vocabulary.words * 4
        )

    @property
    def min_tokens(self) -> int:
        return int(self.distance[0])

    @property
    def max_tokens(self) -> int | None:
        return self.longest

    start = 0

    def step(self, state: int, token: int) -> int:
        """The state after `token`; -1 if it may not follow (end tokens lead nowhere)."""
        return int(self.next.item(state, self.class_of.item(token)))

    def can_end(self, state: int) -> bool:
        return bool(self.fsm.accepting[state])

    def must_end(self, state: int) -> bool:
        """May nothing but the end follow?"""
        return self.can_end(state) and not (self.next[state] >= 0).any()

    def forced(self, state: int) -> bytes:
        """What every continuation begins with; empty where the text may end."""
        return self.fsm.forced_text(state)

    def advance_bytes(self, state: int, data: bytes) -> int:
        return self.fsm.run(data, state)

    def tokens_to_end(self, state: int) -> int:
        return int(self.distance[state])

    def allowed(self, state: int) -> np.ndarray:
        """uint32 [words], read only: bit t is set if token t may follow; end tokens where the text may end."""
        row = self._rows[state]
        return row if row is not None else self._keep(state, self._mask(state, self.next[state] >= 0))

    def allowed_within(self, state: int, tokens: int) -> np.ndarray:
        """Like `allowed`, but only what still leaves a complete text within `tokens` tokens, this one included."""
        if self.farthest < tokens:
            return self.allowed(state)
        row = self._near.get((state, tokens))
        if row is None:
            goals = self.next[state]
            if self.distance[goals[goals >= 0]].max(initial=0) < tokens:
                return self.allowed(state)
            row = self._mask(state, (goals >= 0) & (self.distance[goals] <= tokens - 1))
            self._near[state, tokens] = row
            if len(self._near) * row.nbytes > self.row_bytes:
                self._near.popitem(last=False)
        return row

    def _mask(self, state: int, live: np.ndarray) -> np.ndarray:
        offsets, members = self._members
        row = np.empty(self.vocabulary.words, np.uint32)
        if int(np.diff(offsets)[live].sum()) < _NARROW:
            kernels.mask_by_members(live, offsets, members, row)
        else:
            kernels.mask_by_class(live, self.class_of, row)
        if self.fsm.accepting[state]:
            for end in self.vocabulary.eos:
                row[end >> 5] |= np.uint32(1 << (end & 31))
        row.setflags(write=False)
        return row

    def _keep(self, state: int, row: np.ndarray) -> np.ndarray:
        self._rows[state] = row
        self._kept.append(state)
        if len(self._kept) * row.nbytes > self.row_bytes:
            self._rows[self._kept.popleft()] = None
        return row

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        offsets, members = kernels.members_by_class(self.class_of, self.classes)
        return offsets, members
