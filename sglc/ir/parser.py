"""The textual IR, read back into nodes. Errors name line and column."""

from __future__ import annotations

import base64
import re
from typing import Any, get_args, get_type_hints

from lark import Token, Tree
from lark.exceptions import UnexpectedInput

from grammar.loader import load
from runtime.api import Constraint
from sglc.errors import IRError
from sglc.ir.build import build_node
from sglc.ir.core import Graph, Module, Node, Region, Symbol, Value
from sglc.ir.slots import is_type
from sglc.ir.specs import Location

KINDS: tuple[str, ...] = get_args(get_type_hints(Constraint)["kind"])
_ESCAPE = re.compile(r'\\(?:u\{([0-9a-f]{1,6})\}|([ntr"\\]))', re.IGNORECASE)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def parse_module(text: str) -> Module:
    """Raises IRError, with line and column, for text that is not IR."""
    try:
        tree = load("ir").parse(text)
    except UnexpectedInput as error:
        lines = text.splitlines() or [""]
        line = error.line if error.line > 0 else len(lines)
        shown = lines[min(line, len(lines)) - 1]
        raise IRError(f"line {line}, column {error.column}: this is not IR: {shown.strip()!r}") from None
    graphs: dict[str, Graph] = {}
    constraints: dict[str, Constraint] = {}
    facts: dict[str, dict[str, int]] = {}
    for item in tree.children:
        assert isinstance(item, Tree)
        name = str(item.children[0])[1:]
        if item.data == "constraint":
            kind = str(item.children[1])
            if kind not in KINDS:
                raise IRError(f"constraint @{name}: {kind!r} is not one of {', '.join(KINDS)}")
            constraints[name] = Constraint(kind, _string(item.children[2]))  # type: ignore[arg-type]
            told = {str(f.children[0]): int(f.children[1]) for f in item.children[3:]}  # type: ignore[union-attr, arg-type]
            if told:
                facts[name] = told
        elif name in graphs:
            raise IRError(f"line {item.meta.line}: the graph @{name} is defined twice")
        else:
            graphs[name] = _Reader(item).graph()
    if not graphs:
        raise IRError("there is no graph in this text")
    return Module(graphs, next(iter(graphs)), constraints, facts)


def _string(token: Any) -> str:
    def char(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _SHORT[match[2]]

    body = str(token)[1:-1]
    return _ESCAPE.sub(char, body) if "\\" in body else body


def _literal(tree: Any) -> Any:
    kind = tree.data
    if kind == "list":
        return tuple(_literal(child) for child in tree.children if child is not None)
    if kind in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[kind]
    token = tree.children[0]
    if kind == "string":
        return _string(token)
    if kind == "bytes":
        return base64.b64decode(str(token)[2:-1])
    if kind == "int":
        return int(token)
    if kind == "float":
        return float(token)
    assert kind == "symbol", kind
    return Symbol(str(token)[1:])


def _type(tree: Any) -> str:
    name, inner = str(tree.children[0]), tree.children[1]
    text = name if inner is None else f"{name}<{_type(inner)}>"
    if not is_type(text):
        raise IRError(f"line {tree.meta.line}: {text!r} is not a type")
    return text


class _Reader:
    """Reads one graph; knows the type of every value defined so far."""

    def __init__(self, tree: Tree[Any]) -> None:
        self.tree = tree
        self.values: dict[str, Value] = {}

    def graph(self) -> Graph:
        symbol, *params, attrs, block = self.tree.children
        assert isinstance(block, Tree)
        for param in params:
            if param is not None:
                self._define(str(param.children[0])[1:], _type(param.children[1]), param)
        constants = tuple((k, str(v)) for k, v in self._attrs(attrs).items())
        found = tuple(self.values.values())
        return Graph(str(symbol)[1:], found, self._nodes(block), constants)

    def _define(self, name: str, type_: str, tree: Any) -> None:
        if name in self.values:
            raise IRError(f"line {tree.meta.line}: %{name} is defined twice")
        self.values[name] = Value(name, type_)

    def _nodes(self, block: Tree[Any]) -> tuple[Node, ...]:
        return tuple(self._node(child) for child in block.children)

    def _region(self, tree: Tree[Any]) -> Region:
        *params, block = (child for child in tree.children if child is not None)
        for param in params:
            self._define(str(param.children[0])[1:], _type(param.children[1]), param)
        given = tuple(self.values[str(param.children[0])[1:]] for param in params)
        statements = list(block.children)
        results: tuple[Any, ...] = ()
        last = statements[-1] if statements else None
        if last is not None and str(last.children[1]) == "yield":
            statements.pop()
        nodes = tuple(self._node(child) for child in statements)
        if last is not None and len(statements) < len(block.children) and last.children[2] is not None:
            results = tuple(self._operand(o) for o in last.children[2].children)
        return Region(nodes, results, given)

    def _node(self, tree: Any) -> Node:
        defs, op, operands, attrs, *rest = tree.children
        at: Location | None = None
        regions: list[Region] = []
        for part in rest:
            if part is not None and part.data == "loc":
                file, line, column = part.children
                at = Location(_string(file), int(line), int(column))
            elif part is not None:
                regions.append(self._region(part))
        names = [
            (str(d.children[0])[1:], _type(d.children[1]) if d.children[1] is not None else None)
            for d in (defs.children if defs is not None else ())
        ]
        given = [self._operand(o) for o in (operands.children if operands is not None else ())]
        try:
            made = build_node(str(op), names, given, self._attrs(attrs), regions, at)
        except IRError as error:
            raise IRError(f"line {tree.meta.line}: {error}") from None
        for value in made.defs:
            self._define(value.name, value.type, tree)
        return made

    def _attrs(self, tree: Any) -> dict[str, Any]:
        if tree is None:
            return {}
        found: dict[str, Any] = {}
        for attr in tree.children:
            if attr is None:
                continue
            name = str(attr.children[0])
            if name in found:
                raise IRError(f"line {attr.meta.line}: the attribute {name!r} is given twice")
            found[name] = _literal(attr.children[1])
        return found

    def _operand(self, tree: Any) -> Any:
        if tree.data != "value":
            return _literal(tree)
        token = tree.children[0]
        assert isinstance(token, Token)
        name = str(token)[1:]
        if name not in self.values:
            raise IRError(f"line {token.line}: %{name} is used but nothing defines it before")
        return self.values[name]
