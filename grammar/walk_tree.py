"""A tree of tokens whose siblings lie side by side: what a walk tries next is in the cache line it reads already.

`TokenTrie` is in preorder, so the children of a node are far apart where their subtrees are large. Here the children of node i
are side by side, and what is known of a node too; node 0 is the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from grammar.pushdown_loops import CHILD, END_CHILD, TOKEN, TOKENS_HERE, addresses
from grammar.trie import TokenTrie


@dataclass(frozen=True, eq=False)
class WalkTree:
    """
    byte   uint8 [nodes]
    nodes  int32 [nodes, 4]; descendants of a node lie in one piece, behind its siblings
    ids    int32 []
    """

    byte: np.ndarray
    nodes: np.ndarray
    ids: np.ndarray

    @cached_property
    def address(self) -> int:
        """Of the table of where its arrays begin; compiled loops take it (`grammar.pushdown_loops`)."""
        return int(self._addresses.ctypes.data)

    @cached_property
    def _addresses(self) -> np.ndarray:
        return addresses((self.byte, self.nodes, self.ids))

    @staticmethod
    def of(trie: TokenTrie, ids: np.ndarray | None = None) -> WalkTree:
        """`ids`: what the tokens are called, if not as in the trie."""
        ids = trie.ids if ids is None else ids
        byte, nodes = _ordered(trie.byte, trie.skip, trie.unique, trie.offsets, ids)
        return WalkTree(byte, nodes, ids)

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
    names    where the string is a name that is not one of some names: the tree of tokens that close it, in which the
             others are walked
    """

    shared: np.ndarray | None
    tree: WalkTree | None
    closing: bool = False
    names: WalkTree | None = None

    @cached_property
    def address(self) -> int:
        """Of where its row begins, the addresses of its trees (each 0 for None) and `closing`; compiled loops take it."""
        return int(self._addresses.ctypes.data)

    @cached_property
    def _addresses(self) -> np.ndarray:
        row = 0 if self.shared is None else self.shared.ctypes.data
        tree, names = (0 if t is None else t.address for t in (self.tree, self.names))
        return np.array([row, tree, names, self.closing], np.int64)


@njit(cache=True)
def _ordered(byte, skip, unique, offsets, ids):  # type: ignore[no-untyped-def]
    count = len(byte) + 1
    new_byte = np.zeros(count, np.uint8)
    nodes = np.zeros((count, 4), np.int32)
    place = np.zeros(count, np.int32)  # of each node of the preorder, the root's first
    used = 1
    for node in range(count):
        here = place[node]
        end = skip[node - 1] if node > 0 else count - 1
        nodes[here, CHILD] = used
        child = node  # the preorder number of the first child is that of its parent's place in `place`
        while child < end:
            place[child + 1] = used
            new_byte[used] = byte[child]
            if unique[child] >= 0:
                at = offsets[unique[child]]
                n = offsets[unique[child] + 1] - at
                nodes[used, TOKEN], nodes[used, TOKENS_HERE] = ids[at] if n == 1 else at, n
            used += 1
            child = skip[child]
        nodes[here, END_CHILD] = used
    return new_byte, nodes
