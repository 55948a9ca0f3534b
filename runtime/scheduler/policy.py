"""The order in which waiting requests are considered, and which of them gains by waiting on.

A policy is one function; higher priority always goes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from runtime.kv.cache import PrefixCache
from runtime.kv.radix import Node, RadixTree, common_length
from runtime.request import Request

Policy = Callable[[list[Request], RadixTree], list[Request]]

# Above this many waiting requests, looking each one up in the tree costs more than the order is worth.
MANY_WAITING = 128
# A request that others overtook in so many steps goes to the front.
PATIENCE = 256
# A request waits for another one that is computing its prefix if it gains at least so many tokens.
SHARE_AT_LEAST = 16


def fcfs(waiting: list[Request], tree: RadixTree) -> list[Request]:
    """First come, first served."""
    return waiting


def lpm(waiting: list[Request], tree: RadixTree) -> list[Request]:
    """Longest cached prefix first, so that it is used before it is evicted."""
    if len(waiting) > MANY_WAITING:
        return waiting
    return sorted(waiting, key=lambda r: -tree.matched_length(r.tokens, r.reusable, r.salt))


def dfs_weight(waiting: list[Request], tree: RadixTree) -> list[Request]:
    """Depth first through the tree, children with more waiting requests first.

    With an unlimited batch this computes every edge of the tree once. Source: SGLang, arXiv 2312.07104, theorem 3.1.
    """
    if len(waiting) > MANY_WAITING:
        return waiting
    at: dict[int, list[Request]] = {}
    weight: dict[int, int] = {}
    roots: dict[int, Node] = {}
    for request in waiting:
        _, node = tree.match(request.tokens, request.reusable, request.salt)
        at.setdefault(id(node), []).append(request)
        current: Node | None = node
        while current is not None:
            weight[id(current)] = weight.get(id(current), 0) + 1
            if current.parent is None:
                roots[id(current)] = current
            current = current.parent
    order: list[Request] = []
    stack = sorted(roots.values(), key=lambda n: weight[id(n)])
    while stack:
        node = stack.pop()
        children = [c for c in node.children.values() if id(c) in weight]
        stack += sorted(children, key=lambda n: weight[id(n)])
        order += at.get(id(node), [])
    return order


def shuffled(waiting: list[Request], tree: RadixTree) -> list[Request]:
    """Any order; for comparison."""
    return random.sample(waiting, len(waiting))


POLICIES: dict[str, Policy] = {"lpm": lpm, "fcfs": fcfs, "dfs-weight": dfs_weight, "random": shuffled}


def ordered(waiting: list[Request], tree: RadixTree, policy: Policy) -> list[Request]:
    """Waiting requests in the order to start them: priority, then the impatient, then the policy."""
    order = waiting if len(waiting) < 2 else policy(waiting, tree)
    if any(r.priority or r.skipped >= PATIENCE for r in order):
        order = sorted(order, key=lambda r: (-r.priority, r.skipped < PATIENCE))
    return order


def prefix_in_progress(request: Request, prefilling: Iterable[Request], cache: PrefixCache) -> bool:
    """Whether a running request is computing tokens that this one would have to compute too.

    It will be looked at again when they have landed and are in the tree.
    """
    if not cache.reuse:
        return False
    limit = request.reusable
    have = -1
    for other in prefilling:
        if other.salt != request.salt or other.tokens[:1] != request.tokens[:1]:
            continue
        same = min(common_length(request.tokens, other.tokens), limit)
        if same < SHARE_AT_LEAST or same <= other.landed:
            continue
        if have < 0:
            have = cache.tree.matched_length(request.tokens, limit, request.salt)
        if same - same % cache.page_size - have >= SHARE_AT_LEAST:
            return True
    return False
