"""What the scheduler says about pages: this request starts, needs room, is done.

Joins the pool and the tree. A request's row of pages begins with `shared` pages that the tree owns and the
request has locked; the rest is its own, as are `copies`: pages it computed though the tree had them meanwhile.
"""

from __future__ import annotations

from runtime.kv.pages import PagePool
from runtime.kv.radix import Node, RadixTree
from runtime.request import Request


class PrefixCache:
    """Pages of running requests and of what is worth remembering. `reuse=False`: remember nothing."""

    def __init__(self, pages: int, page_size: int = 1, *, reuse: bool = True) -> None:
        self.pool = PagePool(pages)
        self.tree = RadixTree(page_size)
        self.page_size = page_size
        self.reuse = reuse

    @property
    def available(self) -> int:
        """Pages that are free or can be made free."""
        return self.pool.free + self.tree.evictable

    @property
    def used(self) -> int:
        """Pages that running requests hold."""
        return self.pool.total - self.available

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def open(self, request: Request) -> None:
        """Give a request the pages of its longest cached prefix; its last token is always computed anew."""
        assert not request.pages and request.node is None
        if not self.reuse:
            return
        pages, node = self.tree.match(request.tokens, request.reusable, request.salt)
        self.tree.lock(node, uses=1)
        request.node = node
        request.pages = pages
        request.shared = len(pages)
        request.scheduled = request.landed = len(pages) * self.page_size

    def room(self, request: Request, tokens: int) -> int:
        """Pages that must be added to the request's row for positions below `tokens`."""
        return self.pages_for(tokens) - len(request.pages)

    def grow(self, request: Request, tokens: int) -> list[int] | None:
        """Add pages for all positions below `tokens`, evicting if need be; None if there are not enough."""
        need = -(-tokens // self.page_size) - len(request.pages)
        if need <= 0:
            return []
        if need > self.pool.free:
            if need > self.available:
                return None
            self.pool.give(self.tree.evict(need - self.pool.free))
        added = self.pool.take(need)
        request.pages += added
        return added

    def publish(self, request: Request) -> None:
        """Let others reuse what the request has computed so far; the request goes on with the same pages."""
        if not self.reuse:
            return
        whole = request.landed // self.page_size
        if whole <= request.shared:
            return
        had, node = self.tree.insert(
            request.tokens[: whole * self.page_size], request.pages[:whole], request.salt
        )
        self._take_over(request, whole, had, node)

    def _take_over(self, request: Request, whole: int, had: int, node: Node) -> None:
        request.copies += request.pages[request.shared : had]
        self.tree.lock(node)
        if request.node is not None:
            self.tree.unlock(request.node)
        request.node = node
        request.shared = whole

    def close(self, request: Request, *, keep: bool = True) -> None:
        """The request leaves its seat: what it computed is kept for others, the rest is freed."""
        if keep:
            self.publish(request)
        self.pool.give(request.pages[request.shared :])
        self.pool.give(request.copies)
        if request.node is not None:
            self.tree.unlock(request.node)
        request.node = None
        request.pages, request.copies, request.shared = [], [], 0
        request.scheduled = request.landed = 0

    def discard(self, request: Request) -> None:
        """The request leaves its seat and what it computed is wrong: nobody is to find it. What others computed before it
        came stays; who reads its pages now goes on, and is wrong himself."""
        tokens, salt = request.tokens, request.salt
        self.close(request, keep=False)
        if self.reuse:
            self.pool.give(self.tree.forget(tokens, max(request.cached, 0), salt))

    def flush(self) -> None:
        """Forget everything that nobody holds."""
        self.pool.give(self.tree.evict(self.tree.evictable))

    def check(self, running: list[Request]) -> None:
        """Raise AssertionError unless every page is free, in the tree, or owned by exactly one request, and the locks are
        those of the requests."""
        self.tree.check(request.node for request in running if request.node is not None)
        owned = self.tree.pages()
        for request in running:
            owned += request.pages[request.shared :] + request.copies
        self.pool.check(owned)
