"""`canonicalize`: the simplest graph of the same meaning, so that other passes see one form of each thing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runtime.compute import OPERATIONS, ComputeError
from sglc.ir.core import Graph, Names, Node, Operand, Region, Value
from sglc.ir.ops import Fork, Gen, If, Pack, Text
from sglc.ir.pure import Pure, pure
from sglc.passes.base import Pass, Report

_FOLDED = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Canonicalize(Pass, name="canonicalize"):
    """Compute constants, merge text that follows text, drop what appends nothing and what nobody reads.

    Pure ops on constants are computed; one that would fail is left to fail in the run. `concat` that is appended
    becomes parts of the text. Forks without branches go, and a fork of one branch goes where the forked state
    does not go on itself. An `if` on a constant becomes its arm. Values are numbered anew in order. Gens and selects are
    never touched, and regions are treated like graphs.
    """

    def run(self, graph: Graph, report: Report) -> Graph:
        nodes, _ = self._block(list(graph.nodes), (), report)
        return renumbered(graph.with_nodes(nodes))

    def _block(
        self, nodes: list[Node], results: tuple[Operand, ...], report: Report
    ) -> tuple[list[Node], tuple[Operand, ...]]:
        """The nodes of a graph or a region, and what it yields."""
        before: list[Node] = []
        while (
            nodes != before
        ):  # nodes are themselves or not equal; what one step drops may have held another back
            before = nodes
            nodes = [self._inside(n, report) for n in nodes]
            for step in (self._fold, self._take_arms, self._drop_forks, self._fuse):
                nodes, same = step(nodes, results, report)
                results = tuple(same.get(v, v) if isinstance(v, Value) else v for v in results)
            nodes = self._drop_dead(nodes, results, report)
        return nodes, results

    def _inside(self, node: Node, report: Report) -> Node:
        changed: dict[str, Region] = {}
        for name in node.layout.regions:
            old: Region = getattr(node, name)
            nodes, results = self._block(list(old.nodes), old.results, report)
            if len(nodes) != len(old.nodes) or any(a is not b for a, b in zip(nodes, old.nodes, strict=True)):
                changed[name] = Region(tuple(nodes), results, old.params)
        return dataclasses.replace(node, **changed) if changed else node  # type: ignore[arg-type]

    def _take_arms(
        self, source: list[Node], results: tuple[Operand, ...], report: Report
    ) -> tuple[list[Node], dict[Value, Operand]]:
        """The arm of an `if` on a constant takes its place; what both arms yield alike is that value."""
        same: dict[Value, Operand] = {}
        nodes: list[Node] = []
        for old in source:
            node = old.remap(same) if same else old
            if not isinstance(node, If):
                nodes.append(node)
                continue
            if isinstance(node.cond, bool):
                arm = node.then if node.cond else node.orelse
                same.update(zip(node.outs, arm.results, strict=True))
                nodes.extend(arm.nodes)
                report.add("arms taken")
                continue
            pairs = list(zip(node.outs, node.then.results, node.orelse.results, strict=True))
            alike = {o: a for o, a, b in pairs if o.type != "state" and type(a) is type(b) and a == b}
            if alike:
                same.update(alike)
                left = [p for p in pairs if p[0] not in alike]
                node = dataclasses.replace(
                    node,
                    outs=tuple(o for o, _, _ in left),
                    then=dataclasses.replace(node.then, results=tuple(a for _, a, _ in left)),
                    orelse=dataclasses.replace(node.orelse, results=tuple(b for _, _, b in left)),
                )
            nodes.append(node)
        return nodes, same

    def _fold(
        self, source: list[Node], results: tuple[Operand, ...], report: Report
    ) -> tuple[list[Node], dict[Value, Operand]]:
        known: dict[Value, Operand] = {}
        parts: dict[Value, tuple[Operand, ...]] = {}  # of values that are concatenations
        nodes: list[Node] = []
        for old in source:
            node = old.remap(known) if known else old
            if isinstance(node, Text):
                node = _flattened(node, parts)
            elif isinstance(node, Pure):
                if not any(isinstance(a, Value) for a in node.args):
                    try:
                        result = node.compute(node.args)
                    except ComputeError:
                        result = ...
                    if isinstance(result, _FOLDED):
                        known[node.out] = result
                        report.add("folded")
                        continue
                if node.op == "concat":
                    node = _concat(node, parts)
                    if len(node.args) == 1 and _is_text(node.args[0]):
                        known[node.out] = node.args[0]
                        report.add("folded")
                        continue
                    parts[node.out] = node.args
            nodes.append(node)
        return nodes, known

    def _drop_forks(
        self, nodes: list[Node], results: tuple[Operand, ...], report: Report
    ) -> tuple[list[Node], dict[Value, Operand]]:
        uses = _uses(nodes, results)
        same: dict[Value, Operand] = {}
        kept: list[Node] = []
        for old in nodes:
            node = old.remap(same) if same else old
            if isinstance(node, Fork):
                if not node.outs:
                    report.add("forks dropped")
                    continue
                if len(node.outs) == 1 and isinstance(old, Fork) and uses[old.state] == 1:
                    same[node.outs[0]] = node.state
                    report.add("forks dropped")
                    continue
            kept.append(node)
        return kept, same

    def _fuse(
        self, nodes: list[Node], results: tuple[Operand, ...], report: Report
    ) -> tuple[list[Node], dict[Value, Operand]]:
        uses = _uses(nodes, results)
        heads: dict[Value, int] = {}  # a text's state -> its place in `kept`
        same: dict[Value, Operand] = {}
        kept: list[Node | None] = []
        for old in nodes:
            node = old.remap(same) if same else old
            if isinstance(node, Text):
                if not node.parts:
                    same[node.out] = node.state
                    uses[node.state] += uses[node.out] - 1
                    report.add("empty text dropped")
                    continue
                place = heads.get(node.state)
                if place is not None and uses[node.state] == 1:
                    head = kept[place]
                    assert isinstance(head, Text)
                    node = dataclasses.replace(
                        node, state=head.state, parts=_merged((*head.parts, *node.parts)), at=head.at
                    )
                    kept[place] = None
                    report.add("text fused")
                heads[node.out] = len(kept)
            kept.append(node)
        return [n for n in kept if n is not None], same

    def _drop_dead(self, nodes: list[Node], results: tuple[Operand, ...], report: Report) -> list[Node]:
        uses = _uses(nodes, results)
        lengths = {n.text: n.n for n in nodes if isinstance(n, Gen) and n.n is not None}
        kept: list[Node] = []
        for node in reversed(nodes):
            dead = isinstance(node, (Pure, Pack)) and not uses[node.out]
            # An op that can fail is kept: that it fails may be all that somebody sees of it.
            if dead and (isinstance(node, Pack) or OPERATIONS[node.op].total or _is_sample(node, lengths)):
                for value in node.uses:
                    uses[value] -= 1
                report.add("dead ops dropped")
            else:
                kept.append(node)
        return kept[::-1]


def _uses(nodes: list[Node], results: tuple[Operand, ...]) -> Counter[Value]:
    """How often each value is used; all uses inside of one region's owner count once."""
    every: list[Value] = [v for v in results if isinstance(v, Value)]
    for node in nodes:
        every.extend(node.uses)
        if node.layout.regions:
            every.extend(node.captures)
    return Counter(every)


def _is_sample(node: Node, lengths: dict[Value, int]) -> bool:
    """Whether this reads one of the samples of a gen that has at least as many."""
    if node.op != "item":
        return False
    owner, index = node.operands
    return isinstance(owner, Value) and isinstance(index, int) and 0 <= index < lengths.get(owner, 0)


def _is_text(operand: Operand) -> bool:
    return isinstance(operand, str) or (isinstance(operand, Value) and operand.type == "str")


def _flattened(node: Text, parts: dict[Value, tuple[Operand, ...]]) -> Text:
    found: list[Operand] = []
    for part in node.parts:
        found.extend(parts.get(part, (part,)) if isinstance(part, Value) else (part,))
    merged = _merged(tuple(found))
    return node if merged == node.parts else dataclasses.replace(node, parts=merged)


def _concat(node: Pure, parts: dict[Value, tuple[Operand, ...]]) -> Pure:
    found: list[Operand] = []
    for arg in node.args:
        found.extend(parts.get(arg, (arg,)) if isinstance(arg, Value) else (arg,))
    merged = _merged(tuple(found)) or ("",)
    if merged == node.args:
        return node
    return pure("concat", node.out, merged, node.at)


def _merged(parts: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """Neighbouring constants joined, empty ones dropped."""
    found: list[Operand] = []
    run: list[str] = []
    for part in parts:
        if isinstance(part, str):
            run.append(part)
            continue
        if text := "".join(run):
            found.append(text)
        run = []
        found.append(part)
    if text := "".join(run):
        found.append(text)
    return tuple(found)


def renumbered(graph: Graph) -> Graph:
    """The same graph with its unnamed values numbered in order; names that are words stay."""
    names = Names(p.name for p in graph.params)
    to: dict[Value, Value] = {}

    def number(values: Iterable[Value]) -> None:
        for value in values:
            if value.name.isdecimal():
                fresh = names.fresh(value.type)
                if fresh != value:
                    to[value] = fresh

    for node in graph.walk():
        number(node.defs)
        for region in node.regions:
            number(region.params)
    if not to:
        return graph
    return graph.with_nodes([_renamed(n, to) for n in graph.nodes])


def _renamed(node: Node, to: dict[Value, Value]) -> Node:
    if not node.layout.regions and to.keys().isdisjoint(node.defs) and to.keys().isdisjoint(node.uses):
        return node

    def new(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(to.get(v, v) if isinstance(v, Value) else v for v in value)
        return to.get(value, value) if isinstance(value, Value) else value

    changed: dict[str, Any] = {name: new(getattr(node, name)) for name, _ in node.layout.defs}
    changed |= {name: new(getattr(node, name)) for name, _ in node.layout.uses}
    for name in node.layout.regions:
        region: Region = getattr(node, name)
        inner = tuple(_renamed(n, to) for n in region.nodes)
        changed[name] = Region(inner, new(region.results), new(region.params))
    return dataclasses.replace(node, **changed)
