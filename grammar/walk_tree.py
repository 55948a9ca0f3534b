"""A tree of tokens whose siblings lie side by side: what a walk tries next is in the cache line it reads already.

`TokenTrie` is in preorder, so the children of a node are far apart where their subtrees are large. Here the children of node i
are first[i] .. last[i] - 1, ascending by byte; node 0 is the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from grammar.pushdown_loops import addresses
from grammar.trie import TokenTrie


@dataclass(frozen=True, eq=False)
class WalkTree:
    """
    byte, first, last   uint8, int32, int32 [nodes]
    unique              int32 [nodes]: number of the byte string that ends here, -1 for none
    offsets, ids        the tokens of byte string u are ids[offsets[u] : offsets[u + 1]]
    """

    byte: np.ndarray
    first: np.ndarray
    last: np.ndarray
    unique: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray

    @cached_property
    def address(self) -> int:
        """Of the table of where its arrays begin; compiled loops take it (`grammar.pushdown_loops`)."""
        return int(self._addresses.ctypes.data)

    @cached_property
    def _addresses(self) -> np.ndarray:
        return addresses((self.byte, self.first, self.last, self.unique, self.offsets, self.ids))

    @staticmethod
    def of(trie: TokenTrie, ids: np.ndarray | None = None) -> WalkTree:
        """`ids`: what the tokens are called, if not as in the trie."""
        byte, first, last, unique = _ordered(trie.byte, trie.skip, trie.unique)
        return WalkTree(byte, first, last, unique, trie.offsets, trie.ids if ids is None else ids)

    @staticmethod
    def ends(tokens: Sequence[tuple[int, bytes]]) -> WalkTree:
        """Of these bytes, each with the token that it stands for: what is left of a token, say."""
        trie = TokenTrie.of([data for _, data in tokens])
        return WalkTree.of(trie, np.array([token for token, _ in tokens], np.int32)[trie.ids])


@dataclass(frozen=True, eq=False)
class Source:
    """What a row is made of: tokens that may follow in many states, and those that are walked.

    shared   uint32 [words], or None
    tree     of the tokens that are walked; None: there are none, and `shared` is the row
    closing  it is that of what tokens have behind the closing quote of a string
    """

    shared: np.ndarray | None
    tree: WalkTree | None
    closing: bool = False

    @cached_property
    def address(self) -> int:
        """Of where its row begins (or 0), the tree's address and `closing`; compiled loops take it."""
        return int(self._addresses.ctypes.data)

    @cached_property
    def _addresses(self) -> np.ndarray:
        shared = 0 if self.shared is None else self.shared.ctypes.data
        return np.array([shared, 0 if self.tree is None else self.tree.address, self.closing], np.int64)


@njit(cache=True)
def _ordered(byte, skip, unique):  # type: ignore[no-untyped-def]
    nodes = len(byte) + 1
    new_byte = np.zeros(nodes, np.uint8)
    first = np.zeros(nodes, np.int32)
    last = np.zeros(nodes, np.int32)
    new_unique = np.full(nodes, -1, np.int32)
    place = np.zeros(nodes, np.int32)  # of each node of the preorder, the root's first
    used = 1
    for node in range(nodes):
        here = place[node]
        end = skip[node - 1] if node > 0 else nodes - 1
        first[here] = used
        child = node  # the preorder number of the first child is that of its parent's place in `place`
        while child < end:
            place[child + 1] = used
            new_byte[used] = byte[child]
            new_unique[used] = unique[child]
            used += 1
            child = skip[child]
        last[here] = used
    return new_byte, first, last, new_unique
