"""The radix tree against the plainest model: a set of token prefixes. A million operations: benchmarks/radix_walk.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.radix_walk import ACTIONS, BesideModel
from runtime.kv.radix import RadixTree, common_length

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=24)


@given(
    st.lists(st.integers(0, 1), max_size=700), st.lists(st.integers(0, 1), max_size=700), st.integers(0, 700)
)
def test_common_length(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected


@pytest.mark.parametrize("size", [1, 3])
@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(ACTIONS), tokens),
        max_size=40,
    )
)
def test_tree_is_a_set_of_prefixes(size: int, steps: list[tuple[str, list[int]]]) -> None:
    both = BesideModel(size)
    for action, run in steps:
        both.do(action, run)
        both.check()


def test_least_recently_used_leaf_goes_first() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3], [0, 1, 2])
    tree.insert([1, 5], [9, 3])
    tree.match([1, 2, 3])
    assert tree.evict(1) == [3]
    assert tree.evict(1) == [1, 2] or tree.cached == 1


def test_salts_share_nothing() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3], [0, 1, 2], salt="a")
    assert tree.match([1, 2, 3], salt="b")[0] == []
    assert tree.match([1, 2, 3], salt="a")[0] == [0, 1, 2]


def test_a_tree_that_is_read_forever_does_not_grow() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3], [0, 1, 2])
    for i in range(300):
        _, node = tree.match([1, 2, 3][: 1 + i % 3])
        tree.lock(node)
        tree.unlock(node)
        tree.match([1, 2], salt=f"salt {i}")
        tree.check(())  # counts what is kept for the eviction, too
    for i in range(300):
        tree.insert([i], [3 + i], salt=f"salt {i}")
    assert len(tree.evict(10**6)) == 303 and not list(tree.nodes())
    tree.check(())


def test_a_walk_finds_what_does_not_add_up() -> None:
    def grown() -> RadixTree:
        tree = RadixTree()
        tree.insert([1, 2, 3], [0, 1, 2])
        tree.insert([1, 5], [9, 3])
        return tree

    def broken(tree: RadixTree) -> str:
        with pytest.raises(AssertionError) as caught:
            tree.check(())
        return str(caught.value)

    grown().check(())
    tree = grown()
    tree.cached += 1
    assert "4 pages cached and 4 evictable, not (5, 4)" in broken(tree)
    tree = grown()
    tree.lock(tree.match([1, 2])[1])
    assert "locks, but 0 requests read it" in broken(tree)
    tree = grown()
    next(n for n in tree.nodes() if n.tokens == [5]).tokens = [7]
    assert "does not hang where its first tokens lead" in broken(tree)
