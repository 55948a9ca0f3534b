"""The tree that finds the longest cached prefix.

A node holds a run of tokens and their pages; only whole pages are kept, so a node's length is a multiple of
the page size and children are told apart by their first page of tokens. A node that a running request
reads is locked, with all above it; the others are evicted leaf by leaf, least recently used first.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from runtime.kv.pages import must

_BLOCK = 256


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items of two lists are equal; compares blocks, so that long runs cost little."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low = 0
    while a[low : low + _BLOCK] == b[low : low + _BLOCK]:
        low += _BLOCK
    while a[low] == b[low]:
        low += 1
    return low


class Node:
    """A run of tokens below `parent`. `locks` counts the users of this node and of all below it, `uses` the requests
    that began with it in the cache; `offered` says that it is on the heap of candidates."""

    __slots__ = ("children", "locks", "offered", "pages", "parent", "salt", "tokens", "used", "uses")

    def __init__(self, parent: Node | None, tokens: list[int], pages: list[int], salt: str = "") -> None:
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.children: dict[object, Node] = {}
        self.locks = 0
        self.used = 0
        self.uses = 0
        self.offered = False
        self.salt = salt


def _length_above(node: Node) -> int:
    length, above = 0, node.parent
    while above is not None:
        length += len(above.tokens)
        above = above.parent
    return length


class RadixTree:
    """Cached prefixes, by `salt` (requests of different salts share nothing).

    `cached` counts all pages in the tree, `evictable` those that no lock holds.
    """

    def __init__(self, page_size: int = 1) -> None:
        self.page_size = page_size
        self.cached = 0
        self.evictable = 0
        self._roots: dict[str, Node] = {}
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._serial = 0

    def _key(self, tokens: Sequence[int], at: int) -> object:
        if self.page_size == 1:
            return tokens[at]
        return tuple(tokens[at : at + self.page_size])

    def match(self, tokens: list[int], limit: int | None = None, salt: str = "") -> tuple[list[int], Node]:
        """Pages of the longest cached prefix of `tokens[:limit]`, and the node where it ends.

        The last node is split if the prefix ends inside it, so locking it locks what was matched and no more.
        """
        end = len(tokens) if limit is None else min(limit, len(tokens))
        end -= end % self.page_size
        self._clock += 1
        node, at = self._roots.get(salt) or Node(None, [], [], salt), 0
        pages: list[int] = []
        while at < end:
            child = node.children.get(self._key(tokens, at))
            if child is None:
                break
            size = len(child.tokens)
            same = common_length(child.tokens, tokens[at : min(at + size, end)])
            same -= same % self.page_size
            if same < size:
                if same == 0:
                    break
                child = self._split(child, same)
            child.used = self._clock
            pages += child.pages
            at += same
            node = child
            if same < size:
                break
        return pages, node

    def matched_length(self, tokens: list[int], limit: int | None = None, salt: str = "") -> int:
        """Tokens of the longest cached prefix; changes nothing."""
        end = len(tokens) if limit is None else min(limit, len(tokens))
        end -= end % self.page_size
        node, at = self._roots.get(salt), 0
        while node is not None and at < end:
            child = node.children.get(self._key(tokens, at))
            if child is None:
                break
            same = common_length(child.tokens, tokens[at : min(at + len(child.tokens), end)])
            at += same - same % self.page_size
            if same < len(child.tokens):
                break
            node = child
        return at

    def insert(self, tokens: list[int], pages: list[int], salt: str = "") -> tuple[int, Node]:
        """Cache whole pages of `tokens`, which lie in `pages`.

        Returns how many leading pages the tree already had (the caller keeps its own copies of those, and
        no longer owns the rest) and the node where the tokens end.
        """
        end = min(len(tokens) // self.page_size, len(pages)) * self.page_size
        had, node = self.match(tokens, end, salt)
        count = len(had)
        if count * self.page_size < end:
            at = count * self.page_size
            child = Node(node, tokens[at:end], pages[count : end // self.page_size], salt)
            child.used = self._clock
            node.children[self._key(tokens, at)] = child
            if node.parent is None:
                self._roots[salt] = node  # a salt has a root while anything is below it
            self.cached += len(child.pages)
            self.evictable += len(child.pages)
            self._offer(child)
            node = child
        return count, node

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the new upper half is returned."""
        parent = node.parent
        assert parent is not None
        upper = Node(parent, node.tokens[:at], node.pages[: at // self.page_size], node.salt)
        upper.locks, upper.used, upper.uses = node.locks, node.used, node.uses
        parent.children[self._key(node.tokens, 0)] = upper
        node.tokens, node.pages, node.parent = node.tokens[at:], node.pages[at // self.page_size :], upper
        upper.children[self._key(node.tokens, 0)] = node
        return upper

    def lock(self, node: Node, uses: int = 0) -> None:
        """Keep a node, and all above it, until `unlock`; `uses` is added to how often they served a request."""
        current: Node | None = node
        while current is not None and current.parent is not None:
            if current.locks == 0:
                self.evictable -= len(current.pages)
            current.locks += 1
            current.uses += uses
            current = current.parent

    def unlock(self, node: Node) -> None:
        current: Node | None = node
        while current is not None and current.parent is not None:
            current.locks -= 1
            assert current.locks >= 0, "a node was unlocked more often than locked"
            if current.locks == 0:
                self.evictable += len(current.pages)
                self._offer(current)
            current = current.parent

    def _offer(self, node: Node) -> None:
        """Put a leaf that nobody holds on the heap of candidates, once; what is stale there is seen when it comes up."""
        if node.locks == 0 and not node.children and node.parent is not None and not node.offered:
            self._serial += 1
            node.offered = True
            heapq.heappush(self._leaves, (node.used, self._serial, node))

    def evict(self, count: int) -> list[int]:
        """Forget least recently used leaves until at least `count` pages are free, or nothing is left."""
        freed: list[int] = []
        while len(freed) < count and self._leaves:
            used, _, node = heapq.heappop(self._leaves)
            node.offered = False
            parent = node.parent
            if parent is None or node.locks or node.children:
                continue
            if used != node.used:
                self._offer(node)
                continue
            freed += self._remove(node)
            self._offer(parent)
        self.cached -= len(freed)
        self.evictable -= len(freed)
        return freed

    def forget(self, tokens: list[int], keep: int, salt: str = "") -> list[int]:
        """Drop what is cached of `tokens` behind the first `keep`, and all that goes on from there; the freed pages. What
        is locked stays."""
        whole, _ = self.match(tokens, None, salt)
        kept, node = self.match(tokens, min(keep, len(whole) * self.page_size), salt)
        if len(kept) == len(whole):
            return []
        key = self._key(tokens, len(kept) * self.page_size)
        below = [node.children[key]]
        for child in below:  # grows while it is read: parents come before their children
            below += child.children.values()
        freed: list[int] = []
        for child in reversed(below):
            if child.locks or child.children:
                continue
            freed += self._remove(child)
        self._leaves = [c for c in self._leaves if c[2].parent is not None]
        heapq.heapify(self._leaves)
        self.cached -= len(freed)
        self.evictable -= len(freed)
        self._offer(node)
        return freed

    def _remove(self, node: Node) -> list[int]:
        """Take a leaf out of the tree; its pages."""
        parent = node.parent
        assert parent is not None
        del parent.children[self._key(node.tokens, 0)]
        node.parent = None
        if parent.parent is None and not parent.children:
            del self._roots[parent.salt]
        return node.pages

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def largest(self, count: int, *, head: int = 48, visit: int = 20_000) -> list[dict[str, object]]:
        """The `count` runs of tokens that save the most: tokens times uses, then tokens. Each with its first `head`
        tokens and those before it. At most `visit` nodes are looked at, so that a large tree holds up no step."""
        found = heapq.nlargest(
            count, islice(self.nodes(), visit), key=lambda n: (len(n.tokens) * n.uses, len(n.tokens))
        )
        return [
            {
                "head": node.tokens[:head],
                "tokens": len(node.tokens),
                "before": _length_above(node),
                "uses": node.uses,
                "readers": node.locks,
                "branches": len(node.children),
                "salted": bool(node.salt),
            }
            for node in found
        ]

    def pages(self) -> list[int]:
        """Every page that the tree owns."""
        return [page for node in self.nodes() for page in node.pages]

    def check(self, readers: Iterable[Node] | None = None) -> None:
        """Raise AssertionError if a count or a link is wrong, or, where `readers` are all nodes in use, a lock."""
        locks: Counter[int] = Counter()
        for reader in readers or ():
            node: Node | None = reader
            while node is not None and node.parent is not None:
                locks[id(node)] += 1
                node = node.parent
        cached = evictable = offered = 0
        for node in self.nodes():
            must(
                len(node.tokens) == len(node.pages) * self.page_size > 0,
                "a node has not a page for its tokens",
            )
            above = node.parent
            linked = above is not None and above.children.get(self._key(node.tokens, 0)) is node
            must(linked, "a node does not hang where its first tokens lead")
            must(above is None or above.salt == node.salt, "a node hangs below another salt's")
            below = max((c.locks for c in node.children.values()), default=0)
            must(node.locks >= below, f"a node has {node.locks} locks, but one below it has {below}")
            if readers is not None:
                known = locks[id(node)]
                must(node.locks == known, f"a node has {node.locks} locks, but {known} requests read it")
            must(
                node.offered or node.locks > 0 or bool(node.children),
                "a leaf that nobody holds cannot be evicted",
            )
            cached += len(node.pages)
            evictable += 0 if node.locks else len(node.pages)
            offered += node.offered
        counted = (self.cached, self.evictable)
        must(
            (cached, evictable) == counted, f"{cached} pages cached and {evictable} evictable, not {counted}"
        )
        must(all(root.children for root in self._roots.values()), "a salt without anything cached is kept")
        must(offered == len(self._leaves), f"{len(self._leaves)} candidates, but {offered} nodes know of it")
