"""`inline`: programs that are called become part of the caller's graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglc.ir.core import Graph, Module, Names, Node, Operand, Region, Value
from sglc.ir.ops import Begin, Call, Fork, Gen, Join, Pack, Return, ScopeBegin, ScopeEnd, Select, SetVar
from sglc.ir.types import type_of
from sglc.passes.base import Pass, Report

TEXT = "text of the call"  # the scope that gives a call's text; nobody can read the state that it is in


@dataclass(frozen=True)
class Inline(Pass, name="inline"):
    """Put the nodes of a called program in the place of its call.

    Licence: nothing that is generated changes. The callee keeps a state of its own, and its gens keep their own defaults
    (`isolated`), not the caller's. A call stays where one of its variables is only known at run time (one that arms of
    an `if` write), or where it would make a graph of more than `max_nodes` nodes.
    """

    max_nodes: int = 20_000

    def run_module(self, module: Module, report: Report) -> Module:
        done: dict[str, Graph] = {}

        def inlined(name: str) -> Graph:
            if name not in done:
                graph = module.graphs[name]
                for call in graph.nodes_of(Call):
                    inlined(call.symbol.name)
                done[name] = _Inliner(graph, done, self.max_nodes, report).graph()
            return done[name]

        main = inlined(module.main)
        needed = _called(main, done)
        graphs = {n: done[n] for n in module.graphs if n == main.name or n in needed}
        return dataclasses.replace(module, graphs=graphs)


def _called(graph: Graph, graphs: Mapping[str, Graph]) -> set[str]:
    found: set[str] = set()
    left = [graph]
    while left:
        for call in left.pop().nodes_of(Call):
            if call.symbol.name not in found:
                found.add(call.symbol.name)
                left.append(graphs[call.symbol.name])
    return found


class _Inliner:
    def __init__(self, graph: Graph, callees: Mapping[str, Graph], max_nodes: int, report: Report) -> None:
        self.source = graph
        self.callees = callees
        self.names: Names = graph.names()
        self.left = max_nodes - sum(1 for _ in graph.walk())
        self.report = report
        self.same: dict[Value, Operand] = {}

    def graph(self) -> Graph:
        return self.source.with_nodes(self.block(self.source.nodes))

    def block(self, nodes: Sequence[Node]) -> list[Node]:
        found: list[Node] = []
        for old in nodes:
            node = old.remap(self.same) if self.same else old
            if isinstance(node, Call):
                inner = self.call(node)
                if inner is not None:
                    found += inner
                    continue
            if node.regions:
                arms = {}
                for name in node.layout.regions:
                    region: Region = getattr(node, name)
                    inside = tuple(self.block(region.nodes))
                    results = tuple(
                        self.same.get(v, v) if isinstance(v, Value) else v for v in region.results
                    )
                    arms[name] = Region(inside, results, region.params)
                node = dataclasses.replace(node, **arms)  # type: ignore[arg-type]
            found.append(node)
        return found

    def call(self, node: Call) -> list[Node] | None:
        """The callee's nodes, with names of this graph; None if the call has to stay."""
        callee = self.callees[node.symbol.name]
        size = sum(1 for _ in callee.walk())
        env = variables(callee)
        end = callee.nodes[-1]
        if size > self.left or env is None or not isinstance(end, Return):
            return None
        if any(name not in env for name in node.variables):
            return None
        self.left -= size
        to: dict[Value, Operand] = dict(zip(callee.params, node.args, strict=True))
        found: list[Node] = []
        scope: Value | None = None
        for old in callee.nodes[:-1]:
            made = self.copied(old, to, node)
            found.append(made)
            if isinstance(made, Begin) and scope is None:
                scope = self.names.fresh("state")
                found.append(ScopeBegin(scope, made.out, TEXT, at=node.at))
                to[old.defs[0]] = scope
        last = to.get(end.state, end.state)
        assert isinstance(last, Value)
        out = self.names.fresh("state")
        found.append(ScopeEnd(out, node.text, last, TEXT, at=node.at))
        *values, result = node.values
        for value, name in zip(values, node.variables, strict=True):
            self.same[value] = self.constant(env[name], to, found, node)
        given = to.get(end.result, end.result) if isinstance(end.result, Value) else end.result
        self.same[result] = given
        self.report.add("calls inlined")
        return found

    def constant(
        self, value: Operand | tuple[Operand, ...], to: Mapping[Value, Operand], found: list[Node], node: Call
    ) -> Operand:
        """What a variable is in this graph; lists that a join made are packed."""
        if isinstance(value, tuple):
            items = tuple(self.constant(v, to, found, node) for v in value)
            kind = "list<str>" if all(type_of(v) == "str" for v in items) else "any"
            out = self.names.fresh(kind)
            found.append(Pack(out, items, at=node.at))
            return out
        return to.get(value, value) if isinstance(value, Value) else value

    def copied(self, node: Node, to: dict[Value, Operand], call: Call) -> Node:
        """A node of the callee with fresh values, and with sampling fields that do not depend on the caller's."""
        changed: dict[str, object] = {}
        for name, _ in node.layout.defs:
            old = getattr(node, name)
            fresh = (
                tuple(self.names.fresh(v.type) for v in old)
                if isinstance(old, tuple)
                else self.names.fresh(old.type)
            )
            changed[name] = fresh
        for name, _ in node.layout.uses:
            old = getattr(node, name)
            if isinstance(old, tuple):
                changed[name] = tuple(to.get(v, v) if isinstance(v, Value) else v for v in old)
            elif isinstance(old, Value):
                changed[name] = to.get(old, old)
        for name in node.layout.regions:
            region: Region = getattr(node, name)
            params = tuple(self.names.fresh(v.type) for v in region.params)
            to.update(zip(region.params, params, strict=True))
            inside = tuple(self.copied(n, to, call) for n in region.nodes)
            results = tuple(to.get(v, v) if isinstance(v, Value) else v for v in region.results)
            changed[name] = Region(inside, results, params)
        if isinstance(node, Gen) and not node.isolated:
            changed["sampling"] = node.sampling.over(call.sampling)
            changed["isolated"] = True
        made = dataclasses.replace(node, **changed)  # type: ignore[arg-type]
        to.update(zip(node.defs, made.defs, strict=True))
        return made


def variables(graph: Graph) -> dict[str | None, Operand | tuple[Operand, ...]] | None:
    """What each variable of the final state is, lists of a join as tuples; None if that is only known at run time."""
    envs: dict[Value, dict[str | None, Operand | tuple[Operand, ...]]] = {}
    for node in graph.nodes:
        states = [v for v in node.uses if v.type == "state"]
        if isinstance(node, Return):
            return envs.get(node.state, {})
        if node.regions:
            states = [v for v in (*node.uses, *node.captures) if v.type == "state"]
            if len(set(states)) > 1:
                return None
        if node.regions and any(
            isinstance(n, (Gen, Select, SetVar, ScopeEnd, Join)) for r in node.regions for n in _walk(r)
        ):
            return None
        if isinstance(node, Begin):
            envs[node.out] = {}
            continue
        if isinstance(node, Fork):
            envs.update((out, dict(envs[node.state])) for out in node.outs)
            continue
        if not states:
            continue
        env = envs.get(states[0], {})
        if isinstance(node, (Gen, Select, ScopeEnd)):
            env[node.name] = node.text
        elif isinstance(node, SetVar):
            env[node.name] = node.value
        elif isinstance(node, Join) and node.mode == "gather_variable":
            found: dict[str | None, list[Operand | tuple[Operand, ...]]] = {}
            for branch in node.branches:
                for name, value in envs[branch].items():
                    if name not in env:
                        found.setdefault(name, []).append(value)
            env.update((name, tuple(values)) for name, values in found.items())  # type: ignore[arg-type]
        for out in node.defs:
            if out.type == "state":
                envs[out] = env
    return None


def _walk(region: Region) -> list[Node]:
    from sglc.ir.core import walk

    return list(walk(region.nodes))
