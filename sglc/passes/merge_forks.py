"""`merge-forks`: branches of one state, however Python made them, are branches of one fork."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sglc.ir.core import Graph, Node, Value
from sglc.ir.ops import Fork
from sglc.passes.base import Pass, Report


@dataclass(frozen=True)
class MergeForks(Pass, name="merge-forks"):
    """Make a fork of a fork's branch, and a second fork of the same state, part of the first fork.

    A branch is a copy of the state, so a copy of it is a copy of the state too. One fork then holds all branches
    that share a prefix, and `hoist-prefix` and lowering see them together. A branch that was only forked
    on stays as long as somebody appends to it.
    """

    def run(self, graph: Graph, report: Report) -> Graph:
        root: dict[
            Value, Fork
        ] = {}  # a state that is a copy, or was forked -> the fork that has all copies of it
        outs: dict[Fork, list[Value]] = {}
        gone: set[Fork] = set()
        needed: set[Value] = set()
        for node in graph.nodes:
            if not isinstance(node, Fork):
                needed.update(node.uses)
                needed.update(node.captures)
                continue
            first = root.get(node.state)
            if first is None:
                first = node
                root[node.state] = node
                outs[node] = list(node.outs)
            else:
                outs[first].extend(node.outs)
                gone.add(node)
                report.add("forks merged")
            root.update((out, first) for out in node.outs)
        if not gone:
            return graph
        spent = {fork.state for fork in gone} - needed  # copies that were only there to be copied
        merged: dict[Node, list[Node]] = {
            fork: [dataclasses.replace(fork, outs=tuple(out for out in found if out not in spent))]
            for fork, found in outs.items()
        }
        return graph.replace_nodes({**merged, **{fork: [] for fork in gone}})
