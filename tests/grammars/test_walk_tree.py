"""The tree that masks are walked in holds every token once, siblings in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from grammar.pushdown_loops import CHILD, END_CHILD, TOKEN, TOKENS_HERE
from grammar.trie import TokenTrie
from grammar.walk_tree import WalkTree


def spelled(tree: WalkTree) -> list[tuple[bytes, int]]:
    found: list[tuple[bytes, int]] = []

    def go(node: int, before: bytes) -> None:
        children = range(tree.nodes[node, CHILD], tree.nodes[node, END_CHILD])
        bytes_here = tree.byte[children.start : children.stop].tolist()
        assert bytes_here == sorted(set(bytes_here))
        for child in children:
            data = before + bytes(tree.byte[child : child + 1])
            token, count = int(tree.nodes[child, TOKEN]), int(tree.nodes[child, TOKENS_HERE])
            here = [token] if count == 1 else tree.ids[token : token + count].tolist()
            found.extend((data, t) for t in here)
            go(child, data)

    go(0, b"")
    return found


@settings(deadline=None)  # the first one loads compiled loops
@given(st.lists(st.binary(max_size=5), max_size=30))
def test_every_token_is_found_by_its_bytes(tokens: list[bytes]) -> None:
    expected = sorted((data, i) for i, data in enumerate(tokens) if data)
    assert sorted(spelled(WalkTree.of(TokenTrie.of(tokens)))) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=1, max_size=4)), max_size=20))
def test_parts_of_tokens_keep_the_tokens_ids(parts: list[tuple[int, bytes]]) -> None:
    assert sorted(spelled(WalkTree.ends(parts))) == sorted((data, token) for token, data in parts)
