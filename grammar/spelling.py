"""The fewest tokens that spell a text."""

from __future__ import annotations

import numpy as np
from numba import njit

from grammar.pushdown_loops import CHILD, END_CHILD, TOKEN, TOKENS_HERE
from grammar.walk_tree import WalkTree

_KEPT = 1 << 16
_NEVER = 1 << 30  # where no tokens spell it


class Spelling:
    """Of one vocabulary, as the tree of its tokens."""

    def __init__(self, tree: WalkTree) -> None:
        self._tree = tree
        self._known: dict[bytes, int] = {}

    def fewest(self, text: bytes) -> int:
        """How many tokens spell `text`."""
        found = self._known.get(text)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[text] = int(self.suffixes(text)[0])
        return found

    def suffixes(self, text: bytes) -> np.ndarray:
        """int32 [bytes + 1]: the fewest tokens that spell the text from each of its bytes on."""
        return self._spelled(text)[0]

    def tokens(self, text: bytes) -> tuple[int, ...]:
        """The fewest tokens that spell `text`, of these the ones that begin longest."""
        fewest, length, token = self._spelled(text)
        assert fewest[0] < _NEVER, "a byte that no token spells"
        ids, at = [], 0
        while at < len(text):
            ids.append(int(token[at]))
            at += int(length[at])
        return tuple(ids)

    def _spelled(self, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tree = self._tree
        return _fewest(np.frombuffer(text, np.uint8), tree.byte, tree.nodes, tree.ids)  # type: ignore[no-any-return]


@njit(cache=True)
def _fewest(text, byte, nodes, ids):  # type: ignore[no-untyped-def]
    """For each place: the fewest tokens from there on, the length of the first of them and which one it is."""
    count = len(text)
    fewest = np.zeros(count + 1, np.int32)
    length = np.zeros(count, np.int32)
    token = np.full(count, -1, np.int32)
    for i in range(count - 1, -1, -1):
        fewest[i] = _NEVER
        node = 0
        for k in range(i, count):
            low, high = nodes[node, CHILD], nodes[node, END_CHILD]
            while low < high:
                middle = (low + high) // 2
                if byte[middle] < text[k]:
                    low = middle + 1
                else:
                    high = middle
            if low == nodes[node, END_CHILD] or byte[low] != text[k]:
                break
            node = low
            if nodes[node, TOKENS_HERE] > 0 and fewest[k + 1] + 1 <= fewest[i]:
                fewest[i] = fewest[k + 1] + 1
                length[i] = k + 1 - i
                token[i] = nodes[node, TOKEN] if nodes[node, TOKENS_HERE] == 1 else ids[nodes[node, TOKEN]]
    return fewest, length, token
