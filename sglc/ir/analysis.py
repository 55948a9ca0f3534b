"""Facts about a graph: who uses a value, how states go on, what depends on what.

Everything is computed in one walk; graphs of networkx are made for those who want to draw or search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sglc.ir.core import Graph, Node, Operand, Value
from sglc.ir.ops import Call, Fork, Gen, Join, Loop, RoleBegin, RoleEnd, Select, Text

if TYPE_CHECKING:
    import networkx

# The message that is open, None for none; several if that depends on the path.
Opened = tuple[RoleBegin | None, ...]


def users(graph: Graph) -> Mapping[Value, list[Node]]:
    """Nodes that use each value, in order; a node that uses it twice is there twice.

    A use inside of a region counts for the node in the block that defines the value: the owner of the region.
    """
    found: dict[Value, list[Node]] = {}

    def block(nodes: Sequence[Node], own: set[Value]) -> None:
        for node in nodes:
            own.update(node.defs)
            for value in (*node.uses, *node.captures):
                if value in own:
                    found.setdefault(value, []).append(node)
            for region in node.regions:
                block(region.nodes, set(region.params))

    block(graph.nodes, set(graph.params))
    return found


def definitions(graph: Graph) -> Mapping[Value, Node]:
    """The node that defines each value; parameters have none."""
    return {value: node for node in graph.walk() for value in node.defs}


def chain(graph: Graph, state: Value, using: Mapping[Value, Sequence[Node]] | None = None) -> list[Node]:
    """The nodes that append to `state`, one after the other, up to its join or return. Forks on the way are left out."""
    using = users(graph) if using is None else using
    found: list[Node] = []
    current: Value | None = state
    while current is not None:
        following = next((n for n in using.get(current, ()) if not isinstance(n, Fork)), None)
        if following is None:
            break
        found.append(following)
        first = following.defs[0] if following.defs else None
        goes_on = first is not None and first.type == "state"
        if isinstance(following, Join) and following.state != current:
            goes_on = False
        current = first if goes_on else None
    return found


def open_messages(graph: Graph) -> Mapping[Value, Opened]:
    """Which message is open in each state, in arms and loops too; a state that is not in it has none."""
    found: dict[Value, Opened] = {}

    def of(value: Operand) -> Opened:
        return found.get(value, (None,)) if isinstance(value, Value) else (None,)

    def meet(outs: Sequence[Value], ways: Sequence[Sequence[Operand]]) -> bool:
        """Unite what comes on several ways; whether that told anything new."""
        grew = False
        for position, out in enumerate(outs):
            if out.type == "state":
                united = tuple(dict.fromkeys(b for way in ways for b in of(way[position])))
                grew |= found.get(out) != united
                found[out] = united
        return grew

    def block(nodes: Sequence[Node]) -> None:
        for node in nodes:
            if isinstance(node, Loop):
                params, again = node.body.params, node.body.results[1:]
                meet(params, [node.inits])
                while True:
                    block(node.body.nodes)
                    if not meet(params, [params, again]):
                        break
                meet(node.outs, [again])
            elif node.regions:
                for region in node.regions:
                    block(region.nodes)
                meet(node.defs, [region.results for region in node.regions])
            else:
                state = next((v for v in node.uses if v.type == "state"), None)
                now = of(state) if state is not None else (None,)
                if isinstance(node, RoleBegin):
                    now = (node,)
                elif isinstance(node, RoleEnd):
                    now = (None,)
                found.update((v, now) for v in node.defs if v.type == "state")

    block(graph.nodes)
    return found


def dependencies(graph: Graph) -> networkx.DiGraph[int]:
    """Nodes by position; an edge leads from a definition to each use."""
    import networkx

    found: networkx.DiGraph[int] = networkx.DiGraph()
    where: dict[Value, int] = {}
    for position, node in enumerate(graph.nodes):
        found.add_node(position, node=node)
        for value in (*node.uses, *node.captures):
            if value in where:
                found.add_edge(where[value], position, value=value.name)
        where.update((value, position) for value in node.defs)
    return found


def critical_path(graph: Graph) -> list[Node]:
    """The longest run of model calls that wait for each other, in order; of a loop, one round."""
    best: dict[Value, tuple[int, Node | None]] = {}
    came: dict[Node, Node | None] = {}
    last: tuple[int, Node | None] = (0, None)

    def longest(values: Sequence[Operand]) -> tuple[int, Node | None]:
        known = [best.get(v, (0, None)) for v in values if isinstance(v, Value)]
        return max(known, key=lambda p: p[0], default=(0, None))

    def block(nodes: Sequence[Node], since: tuple[int, Node | None]) -> None:
        nonlocal last
        for node in nodes:
            length, before = max(longest(node.operands), since, key=lambda p: p[0])
            if isinstance(node, (Gen, Select, Call)):
                came[node] = before
                length, before = length + 1, node
            for region in node.regions:
                best.update(dict.fromkeys(region.params, (length, before)))
                block(region.nodes, (length, before))
                length, before = max(longest(region.results), (length, before), key=lambda p: p[0])
            for value in node.defs:
                best[value] = (length, before)
            if length > last[0]:
                last = (length, before)

    block(graph.nodes, (0, None))
    found: list[Node] = []
    step = last[1]
    while step is not None:
        found.append(step)
        step = came[step]
    return found[::-1]


def shared_prefixes(graph: Graph) -> list[tuple[Value, int]]:
    """Forked states with the number of model calls whose prompt begins with them, most used first."""
    below: Counter[Value] = Counter()
    above: dict[Value, tuple[Value, ...]] = {}
    for node in graph.walk():
        inits = node.inits if isinstance(node, Loop) else ()
        for region in node.regions:
            above.update((p, above[v]) for p, v in zip(region.params, inits, strict=False) if v in above)
        state = next((v for v in node.uses if v.type == "state"), None)
        path = above.get(state, ()) if state is not None else ()
        if isinstance(node, Fork):
            for out in node.outs:
                above[out] = (*path, node.state)
            continue
        if isinstance(node, (Gen, Select)):
            below.update(set(path))
        if not node.regions:
            above.update((value, path) for value in node.defs if value.type == "state")
    return below.most_common()


def constant_chars(graph: Graph) -> int:
    """Characters of constant text that the program appends."""
    return sum(len(p) for n in graph.nodes_of(Text) for p in n.parts if isinstance(p, str))
