"""A module as JSON and back: for tools that would rather not parse text. Locations are always kept."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from runtime.api import Constraint
from sglc.errors import IRError
from sglc.ir.build import build_node
from sglc.ir.core import Graph, Module, Node, Region, Symbol, Value
from sglc.ir.specs import Location

FORMAT = "sglc-ir-1"


def to_json(module: Module, *, indent: int | None = None) -> str:
    data = {
        "format": FORMAT,
        "main": module.main,
        "constraints": {n: {"kind": c.kind, "source": c.source} for n, c in module.constraints.items()},
        "graphs": [_graph_out(g) for g in module.graphs.values()],
    }
    if module.facts:
        data["facts"] = {name: dict(told) for name, told in module.facts.items()}
    return json.dumps(data, indent=indent, allow_nan=False)


def from_json(text: str) -> Module:
    """Raises IRError for JSON that is not a module."""
    try:
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise IRError(f"the JSON has format {data.get('format')!r}; this version reads {FORMAT!r}")
        graphs = {g["name"]: _graph_in(g) for g in data["graphs"]}
        constraints = {n: Constraint(c["kind"], c["source"]) for n, c in data["constraints"].items()}
        facts = {n: {k: int(v) for k, v in told.items()} for n, told in data.get("facts", {}).items()}
        return Module(graphs, data["main"], constraints, facts)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IRError(f"this JSON is not a module: {type(error).__name__}: {error}") from error


def _graph_out(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "params": [[p.name, p.type] for p in graph.params],
        "constants": [list(pair) for pair in graph.constants],
        "nodes": [_node_out(n) for n in graph.nodes],
    }


def _node_out(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"op": node.op, "defs": [[v.name, v.type] for v in node.defs]}
    if node.operands:
        found["operands"] = [_constant_out(v) for v in node.operands]
    if node.attrs:
        found["attrs"] = {name: _constant_out(value) for name, value in node.attrs.items()}
    if node.regions:
        found["regions"] = [
            {
                "params": [[p.name, p.type] for p in region.params],
                "nodes": [_node_out(n) for n in region.nodes],
                "results": [_constant_out(v) for v in region.results],
            }
            for region in node.regions
        ]
    if node.at is not None:
        found["at"] = [node.at.file, node.at.line, node.at.column]
    return found


def _constant_out(value: Any) -> Any:
    if isinstance(value, Value):
        return {"value": value.name}
    if isinstance(value, Symbol):
        return {"symbol": value.name}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, (tuple, list)):
        return [_constant_out(v) for v in value]
    return value


def _graph_in(data: dict[str, Any]) -> Graph:
    params = tuple(Value(name, type_) for name, type_ in data["params"])
    known = {p.name: p for p in params}
    nodes = tuple(_node_in(item, known) for item in data["nodes"])
    return Graph(data["name"], params, nodes, tuple((k, v) for k, v in data["constants"]))


def _node_in(data: dict[str, Any], known: dict[str, Value]) -> Node:
    operands = [_constant_in(v, known) for v in data.get("operands", ())]
    attrs = {name: _constant_in(value, known) for name, value in data.get("attrs", {}).items()}
    regions = [_region_in(region, known) for region in data.get("regions", ())]
    at = Location(*data["at"]) if "at" in data else None
    made = build_node(data["op"], [(n, t) for n, t in data["defs"]], operands, attrs, regions, at)
    known.update((v.name, v) for v in made.defs)
    return made


def _region_in(data: dict[str, Any], known: dict[str, Value]) -> Region:
    params = tuple(Value(name, type_) for name, type_ in data["params"])
    known.update((p.name, p) for p in params)
    nodes = tuple(_node_in(n, known) for n in data["nodes"])
    return Region(nodes, tuple(_constant_in(v, known) for v in data["results"]), params)


def _constant_in(data: Any, known: dict[str, Value]) -> Any:
    if isinstance(data, list):
        return tuple(_constant_in(v, known) for v in data)
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "value":
        if value not in known:
            raise IRError(f"%{value} is used but nothing defines it before")
        return known[value]
    if kind == "symbol":
        return Symbol(value)
    if kind == "bytes":
        return base64.b64decode(value)
    return float(value)
