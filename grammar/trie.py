"""A vocabulary as a tree of bytes, in preorder arrays that compiled loops walk.

Node i has a byte and a depth; its subtree is i+1 .. skip[i]-1, and skip[i] is where a walk goes on when
the byte cannot follow. There is no node for the root: its children are 0, skip[0], skip[skip[0]] and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """
    byte, depth, skip   uint8, int32, int32 [nodes]; depth is 1 for the root's children
    unique              int32 [nodes]: number of the byte string that ends here, -1 for none
    unique_of           int32 [tokens]: number of each token's byte string, -1 if it has none
    offsets, ids        the tokens of byte string u are ids[offsets[u] : offsets[u + 1]]
    lengths             int32 [byte strings]
    """

    byte: np.ndarray
    depth: np.ndarray
    skip: np.ndarray
    unique: np.ndarray
    unique_of: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    max_depth: int

    @staticmethod
    def of(tokens: Sequence[bytes]) -> TokenTrie:
        order = [i for i in sorted(range(len(tokens)), key=tokens.__getitem__) if tokens[i]]
        data = np.frombuffer(b"".join(tokens[i] for i in order) or b"\0", np.uint8)
        lengths = np.array([len(tokens[i]) for i in order], np.int64)
        ends = np.cumsum(lengths) if order else np.zeros(0, np.int64)
        byte, depth, unique, unique_of_sorted = _build(data, ends, lengths)
        skip = _skips(depth)
        ids = np.array(order, np.int32)
        count = int(unique_of_sorted.max()) + 1 if order else 0
        offsets = np.searchsorted(unique_of_sorted, np.arange(count + 1)).astype(np.int32)
        unique_of = np.full(len(tokens), -1, np.int32)
        unique_of[ids] = unique_of_sorted
        unique_lengths = lengths[offsets[:-1]].astype(np.int32)
        longest = int(lengths.max()) if order else 0
        return TokenTrie(byte, depth, skip, unique, unique_of, offsets, ids, unique_lengths, longest)

    @property
    def count(self) -> int:
        """Different byte strings."""
        return len(self.lengths)


@njit(cache=True)
def _build(data, ends, lengths):  # type: ignore[no-untyped-def]
    total = ends[-1] if len(ends) else 0
    byte = np.empty(total, np.uint8)
    depth = np.empty(total, np.int32)
    unique = np.empty(total, np.int32)
    unique_of = np.empty(len(ends), np.int32)
    nodes = 0
    count = 0
    for i in range(len(ends)):
        start = ends[i] - lengths[i]
        shared = 0
        if i > 0:
            before = ends[i - 1] - lengths[i - 1]
            most = min(lengths[i], lengths[i - 1])
            while shared < most and data[before + shared] == data[start + shared]:
                shared += 1
            if shared == lengths[i] and shared == lengths[i - 1]:
                unique_of[i] = count - 1
                continue
        for k in range(shared, lengths[i]):
            byte[nodes] = data[start + k]
            depth[nodes] = k + 1
            unique[nodes] = -1
            nodes += 1
        unique[nodes - 1] = count
        unique_of[i] = count
        count += 1
    return byte[:nodes].copy(), depth[:nodes].copy(), unique[:nodes].copy(), unique_of


@njit(cache=True)
def _skips(depth):  # type: ignore[no-untyped-def]
    nodes = len(depth)
    skip = np.empty(nodes, np.int32)
    for i in range(nodes - 1, -1, -1):
        after = i + 1
        while after < nodes and depth[after] > depth[i]:
            after = skip[after]
        skip[i] = after
    return skip
