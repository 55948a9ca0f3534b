"""`drop-dead`: what nobody can see is not generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.compute import OPERATIONS
from sglc.ir.core import Graph, Node, Operand, Region, Value
from sglc.ir.ops import Break, Call, Fork, Gen, Host, If, Loop, Read, Return, Select
from sglc.ir.pure import Pure
from sglc.passes.base import Pass, Report


@dataclass(frozen=True)
class DropDead(Pass, name="drop-dead"):
    """Drop branches, gens and values from which nothing that can be seen follows.

    Licence: the final state with all its variables, what the body returns and what it reads stay; a gen in a branch that is
    neither joined nor read is not seen by anybody, whether it samples or not. Host calls and calls of programs stay, and so
    do ops that may fail.
    """

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(_block(graph.nodes, (), report)[0])


def _block(
    nodes: Sequence[Node], results: Sequence[Operand], report: Report
) -> tuple[list[Node], set[Value]]:
    """The nodes that are needed, and the values that they need."""
    live: set[Value] = {v for v in results if isinstance(v, Value)}
    kept: list[Node] = []
    for old in reversed(nodes):
        node = old
        if isinstance(node, Fork):
            outs = tuple(o for o in node.outs if o in live)
            if not outs:
                report.add("forks dropped")
                continue
            if len(outs) < len(node.outs):
                report.add("branches dropped", len(node.outs) - len(outs))
                node = dataclasses.replace(node, outs=outs)
        elif isinstance(node, If):
            node = _arms(node, live, report)
        if not _stays(node) and not any(v in live for v in node.defs):
            report.add("calls dropped" if isinstance(node, (Gen, Select)) else "nodes dropped")
            continue
        if node.regions and not isinstance(node, If):
            node = _inside(node, report)
        live.update(node.uses)
        live.update(node.captures)
        kept.append(node)
    return kept[::-1], live


def _stays(node: Node) -> bool:
    """Whether somebody sees that the node happens, even if nobody uses what it gives."""
    if isinstance(node, Pure):
        return not OPERATIONS[node.op].total
    if node.regions:
        return isinstance(node, Loop) or any(_stays(n) for r in node.regions for n in r.nodes)
    return isinstance(node, (Return, Break, Read, Host, Call))


def _arms(node: If, live: set[Value], report: Report) -> If:
    """An `if` that yields only what is needed, from arms that do only what that needs."""
    left = [k for k, out in enumerate(node.outs) if out in live]
    arms: dict[str, Region] = {}
    for name in ("then", "orelse"):
        region: Region = getattr(node, name)
        results = tuple(region.results[k] for k in left)
        inside, _ = _block(region.nodes, results, report)
        if (
            len(inside) != len(region.nodes)
            or len(results) != len(region.results)
            or any(a is not b for a, b in zip(inside, region.nodes, strict=False))
        ):
            arms[name] = Region(tuple(inside), results, region.params)
    if not arms:
        return node
    return dataclasses.replace(node, outs=tuple(node.outs[k] for k in left), **arms)  # type: ignore[arg-type]


def _inside(node: Node, report: Report) -> Node:
    changed: dict[str, Region] = {}
    for name in node.layout.regions:
        region: Region = getattr(node, name)
        inside, _ = _block(region.nodes, region.results, report)
        if any(a is not b for a, b in zip(inside, region.nodes, strict=False)) or len(inside) != len(
            region.nodes
        ):
            changed[name] = Region(tuple(inside), region.results, region.params)
    return dataclasses.replace(node, **changed) if changed else node  # type: ignore[arg-type]
