"""Graphs of the IR as Graphviz text."""

from __future__ import annotations

from sglc.ir.core import Graph, Module
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
    for position, node in enumerate(graph.nodes):
        name = f"g{count}_{position}"
        text = print_node(node)
        label = quote(text if len(text) <= 80 else text[:77] + "...")
        shape = ", shape=box" if isinstance(node, (Gen, Select)) else ""
        lines.append(f"{name} [label={label}{shape}];")
        for value in node.uses:
            style = "" if value.type == "state" else " [style=dashed]"
            lines.append(f"{source[value]} -> {name}{style};")
        source.update(dict.fromkeys(node.defs, name))
    return lines
