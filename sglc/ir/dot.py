"""Graphs of the IR as Graphviz text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sglc.ir.core import Graph, Module, Node, Value
from sglc.ir.ops import Gen, Select
from sglc.ir.printer import print_node


def quote(text: str) -> str:
    """A string of the DOT language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def to_dot(module: Module) -> str:
    """One cluster for each graph; states are solid edges, other values dashed ones. Calls of the model are boxes."""
    lines = [f"digraph {quote(module.main)} {{", "  node [fontname=monospace, shape=plain];"]
    for count, graph in enumerate(module.graphs.values()):
        lines += [f"  subgraph cluster_{count} {{", f"    label={quote('@' + graph.name)};"]
        lines += ["    " + line for line in _graph_lines(graph, count)]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _graph_lines(graph: Graph, count: int) -> list[str]:
    lines = [f"g{count}_arg{k} [label={quote(f'%{p.name}')}];" for k, p in enumerate(graph.params)]
    source = {p: f"g{count}_arg{k}" for k, p in enumerate(graph.params)}
    _block_lines(graph.nodes, f"g{count}", source, lines)
    return lines


def _block_lines(nodes: Sequence[Node], prefix: str, source: dict[Value, str], lines: list[str]) -> None:
    for position, node in enumerate(nodes):
        name = f"{prefix}_{position}"
        text = print_node(node).partition(" {\n")[0]
        label = quote(text if len(text) <= 80 else text[:77] + "...")
        shape = ", shape=box" if isinstance(node, (Gen, Select)) else ""
        lines.append(f"{name} [label={label}{shape}];")
        _edges(node.uses, name, source, lines)
        for which, (region, title) in enumerate(zip(node.regions, node.layout.regions, strict=True)):
            inner = f"{name}_{which}"
            source.update((p, name) for p in region.params)
            lines += [f"subgraph cluster_{inner} {{", f"  label={quote(title)};"]
            _block_lines(region.nodes, inner, source, lines)
            lines += [f"  {inner}_end [label={quote('yield')}];", "}"]
            _edges([v for v in region.results if isinstance(v, Value)], f"{inner}_end", source, lines)
        source.update(
            dict.fromkeys(node.defs, f"{name}_{len(node.regions) - 1}_end" if node.regions else name)
        )


def _edges(values: Iterable[Value], to: str, source: Mapping[Value, str], lines: list[str]) -> None:
    for value in values:
        style = "" if value.type == "state" else " [style=dashed]"
        lines.append(f"{source[value]} -> {to}{style};")
