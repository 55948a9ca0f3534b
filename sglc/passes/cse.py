"""`cse`: what the model would be asked twice, and would answer alike, is asked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglc.ir.core import Graph, Licence, Node, Operand, Region, Value
from sglc.ir.ops import (
    Begin,
    Fork,
    Gen,
    Image,
    Join,
    Pack,
    Reuse,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVar,
    Text,
)
from sglc.ir.pure import Pure
from sglc.passes.base import Pass, Report


@dataclass(frozen=True)
class Cse(Pass, name="cse"):
    """Equal gens and selects after equal prompts become one, through forks and arms too; equal pure ops as well.

    Licence: PURE nodes only, that is selects and gens that are greedy or seeded by themselves. Two prompts are equal if they
    were built alike: constants, values and answers one after the other. What comes second takes the tokens of the first.
    An arm may take what was asked before it, never what another arm asks.
    """

    def run(self, graph: Graph, report: Report) -> Graph:
        return graph.with_nodes(_Numbering(report).block(graph.nodes, {}))


class _Numbering:
    """Value numbering: equal keys are equal values. A state's number stands for its text and messages."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.numbers: dict[Any, int] = {}
        self.of: dict[Value, int] = {}
        self.same: dict[Value, Operand] = {}

    def number(self, key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def operand(self, value: Operand) -> Any:
        if isinstance(value, Value):
            return ("value", self.of.setdefault(value, self.number(("free", value))))
        return (type(value).__name__, value)

    def block(self, nodes: Sequence[Node], seen: dict[Any, Node]) -> list[Node]:
        """`seen`: calls and ops that have happened whenever this block runs, by key."""
        found: list[Node] = []
        for old in nodes:
            node = old.remap(self.same) if self.same else old
            if node.regions:
                arms: dict[str, Region] = {}
                for name in node.layout.regions:
                    region: Region = getattr(node, name)
                    inside = tuple(self.block(region.nodes, dict(seen)))
                    results = tuple(
                        self.same.get(v, v) if isinstance(v, Value) else v for v in region.results
                    )
                    arms[name] = Region(inside, results, region.params)
                found.append(dataclasses.replace(node, **arms))  # type: ignore[arg-type]
                continue
            made = self.node(node, seen)
            if made is not None:
                found.append(made)
        return found

    def node(self, node: Node, seen: dict[Any, Node]) -> Node | None:
        if isinstance(node, (Gen, Select)):
            return self.call(node, seen)
        if isinstance(node, (Pure, Pack)):
            key = (node.op, tuple(map(self.operand, node.operands)), repr(node.attrs), node.out.type)
            first = seen.setdefault(key, node)
            if first is not node:
                self.same[node.out] = first.defs[0]
                self.report.add("ops shared")
                return None
            self.of[node.out] = self.number(key)
            return node
        if isinstance(node, Begin):
            self.of[node.out] = self.number("begin")
        elif isinstance(node, Fork):
            self.of.update(dict.fromkeys(node.outs, self.state(node.state)))
        elif isinstance(node, Text):
            at = self.state(node.state)
            for part in node.parts:  # one after the other, so that it does not matter how text was divided
                at = self.number(("text", at, self.operand(part)))
            self.of[node.out] = at
        elif isinstance(node, Image):
            self.of[node.out] = self.number(("image", self.state(node.state), node.data, node.kind))
        elif isinstance(node, (RoleBegin, RoleEnd)):
            self.of[node.out] = self.number((node.op, self.state(node.state), node.role))
        elif isinstance(node, (ScopeBegin, ScopeEnd, SetVar)):
            self.of[node.out] = self.state(node.state)
        elif isinstance(node, Reuse):
            at = self.state(node.state)
            self.of[node.out] = self.number(("answer", at, self.operand(node.source)))
            self.of[node.text] = self.operand(node.source)[1]
        elif isinstance(node, Join) and node.mode == "gather_variable":
            self.of[node.out] = self.state(node.state)
        return node

    def state(self, state: Value) -> int:
        return self.of.setdefault(state, self.number(("free", state)))

    def call(self, node: Gen | Select, seen: dict[Any, Node]) -> Node:
        at = self.state(node.state)
        choices = tuple(map(self.operand, node.choices)) if isinstance(node, Select) else ()
        attrs = {k: v for k, v in node.attrs.items() if k != "name"}
        key = (node.op, at, choices, repr(attrs))
        first = seen.get(key) if node.licence is Licence.PURE else None
        if first is None:
            if node.licence is Licence.PURE:
                seen[key] = node
                answer = self.number(("call", key))
            else:
                answer = self.number(("sampled", node.text))
            self.of[node.text] = answer
            self.of[node.out] = self.number(("answer", at, ("value", answer)))
            return node
        assert isinstance(first, (Gen, Select))
        self.report.add("calls shared")
        made = Reuse(node.out, node.text, node.state, first.text, node.name, at=node.at)
        self.of[node.text] = self.of[first.text]
        self.of[node.out] = self.number(("answer", at, ("value", self.of[first.text])))
        return made
