"""The canonical text of nodes, graphs and modules; `ir/parser.py` reads it back exactly."""

from __future__ import annotations

import base64
import re
from typing import Any

from sglc.ir.core import Graph, Module, Node, Region, Symbol, Value
from sglc.ir.slots import Role

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
# Not printed as they are: controls, surrogates, and what an editor would take for the end of a line.
_ESCAPED = re.compile('[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff\\ufeff"\\\\]')


def print_string(text: str) -> str:
    return '"' + _ESCAPED.sub(lambda m: _SHORT.get(m[0]) or f"\\u{{{ord(m[0]):x}}}", text) + '"'


def print_constant(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return print_string(value)
    if isinstance(value, bytes):
        return f'b"{base64.b64encode(value).decode()}"'
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(print_constant(v) for v in value) + "]"
    if isinstance(value, (int, float, Symbol, Value)):
        return str(value)
    raise TypeError(f"the IR has no constants of type {type(value).__name__}: {value!r}")


def print_node(node: Node, *, locations: bool = False, indent: str = "  ") -> str:
    words: list[str] = []
    if node.layout.defs:
        defs: list[str] = []
        for name, slot in node.layout.defs:
            values = getattr(node, name)
            for value in (values,) if slot.role is Role.DEF else values:
                defs.append(str(value) if value.type == slot.type else f"{value}: {value.type}")
        if defs:
            words.append(", ".join(defs) + " =")
    words.append(node.op)
    operands = list(node.operands)
    optional = node.layout.uses and node.layout.uses[-1][0] in node.layout.defaults
    if optional and operands and operands[-1] is None:
        operands.pop()
    if operands:
        words.append(", ".join(print_constant(v) for v in operands))
    attrs = node.attrs
    if attrs:
        words.append(
            "{" + ", ".join(f"{name}={print_constant(value)}" for name, value in attrs.items()) + "}"
        )
    for count, region in enumerate(node.regions):
        words.extend(["else"] if count else [])
        if region.params:
            words.append("(" + ", ".join(f"{p}: {p.type}" for p in region.params) + ")")
        words.append(_block(region, locations=locations, indent=indent))
    if locations and node.at is not None:
        words.append(f"loc({print_string(node.at.file)}:{node.at.line}:{node.at.column})")
    return " ".join(words)


def _block(region: Region, *, locations: bool, indent: str) -> str:
    inner = indent + "  "
    lines = [inner + print_node(n, locations=locations, indent=inner) for n in region.nodes]
    if region.results:
        lines.append(f"{inner}yield {', '.join(print_constant(v) for v in region.results)}")
    return "\n".join(["{", *lines, indent + "}"])


def print_graph(graph: Graph, *, locations: bool = False) -> str:
    params = ", ".join(f"{p}: {p.type}" for p in graph.params)
    constants = ""
    if graph.constants:
        constants = "{" + ", ".join(f"{k}={print_string(v)}" for k, v in graph.constants) + "} "
    lines = [f"graph @{graph.name}({params}) {constants}{{"]
    lines.extend("  " + print_node(n, locations=locations) for n in graph.nodes)
    return "\n".join([*lines, "}"])


def print_module(module: Module, *, locations: bool = False) -> str:
    """The main graph is printed first."""
    parts = []
    for name, c in module.constraints.items():
        facts = "".join(f" {key}={value}" for key, value in module.facts.get(name, {}).items())
        parts.append(f"constraint @{name} = {c.kind} {print_string(c.source)}{facts}")
    order = [module.main, *(name for name in module.graphs if name != module.main)]
    parts.extend(print_graph(module.graphs[name], locations=locations) for name in order)
    return "\n".join(parts) + "\n"
