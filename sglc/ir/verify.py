"""What makes a graph well formed: defined before used, states used once, types, and the rules of each op.

A state is appended to at most once: it is a place in a conversation, and a conversation goes on in one
way. `fork` copies it and may do so any number of times, but only before it is appended to: that is the
order in which Python would have done it, and what lets lowering walk a graph once. What one arm of an `if` appends to
is used up after it; the other arm may append to it too. A `loop` may not append to states from outside: those
that it goes on with are its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglc.errors import IRError
from sglc.ir.core import Graph, Module, Node, Region, Symbol, Value
from sglc.ir.ops import Break, Call, Fork, Loop, Return
from sglc.ir.slots import ANYTHING, is_type
from sglc.ir.types import fits, type_of


def verify(graph: Graph, module: Module | None = None) -> None:
    """Raise IRError, naming graph and node, if a rule is broken. With `module`, symbols are looked up too."""
    known: set[Value] = set()
    names: set[str] = set()
    for param in graph.params:
        _define(graph, None, param, known, names)
    _verify_nodes(graph, graph.nodes, known, names, set(), module)
    if not graph.nodes or not isinstance(graph.nodes[-1], (Return, Break)):
        raise IRError(f"@{graph.name}: the last node must be `return` or `break`")


def verify_module(module: Module) -> None:
    if module.main not in module.graphs:
        raise IRError(f"the module has no graph @{module.main}")
    for graph in module.graphs.values():
        verify(graph, module)


def _fail(graph: Graph, item: Node | None, problem: str) -> IRError:
    where = f"@{graph.name}" + (f" ({item.at})" if item is not None and item.at else "")
    return IRError(f"{where}: {problem}" + (f"\n  in: {item}" if item is not None else ""))


def _define(graph: Graph, item: Node | None, value: Value, known: set[Value], names: set[str]) -> None:
    if value.name in names:
        raise _fail(graph, item, f"{value} is defined twice")
    if not is_type(value.type):
        raise _fail(graph, item, f"{value} has the type {value.type!r}, which does not exist")
    known.add(value)
    names.add(value.name)


def _verify_nodes(
    graph: Graph,
    nodes: Sequence[Node],
    known: set[Value],
    names: set[str],
    spent: set[Value],
    module: Module | None,
) -> None:
    last = len(nodes) - 1
    for position, item in enumerate(nodes):
        for value in item.uses:
            if value not in known:
                raise _fail(graph, item, f"{value} ({value.type}) is used but nothing defines it before")
            if value.type == "state":
                if value in spent:
                    verb = "forked" if isinstance(item, Fork) else "used again"
                    raise _fail(graph, item, f"the state {value} is {verb} after it was appended to")
                if not isinstance(item, Fork):
                    spent.add(value)
        _check_types(graph, item)
        try:
            item.verify()
        except IRError as error:
            raise _fail(graph, item, str(error)) from None
        if isinstance(item, (Return, Break)) and (position != last or nodes is not graph.nodes):
            raise _fail(graph, item, f"`{item.op}` must be the last node")
        if module is not None:
            _check_symbols(graph, item, module)
        before = set(spent)
        for region in item.regions:
            spent |= _verify_region(graph, item, region, known, names, before, module)
        for value in item.defs:
            _define(graph, item, value, known, names)


def _verify_region(
    graph: Graph,
    owner: Node,
    region: Region,
    known: set[Value],
    names: set[str],
    spent: set[Value],
    module: Module | None,
) -> set[Value]:
    """The states from outside that the region used up."""
    seen, used = set(known), set(spent)
    for param in region.params:
        _define(graph, owner, param, seen, names)
    _verify_nodes(graph, region.nodes, seen, names, used, module)
    for value in region.results:
        if not isinstance(value, Value):
            continue
        if value not in seen:
            raise _fail(graph, owner, f"yields {value}, which nothing before defines")
        if value.type == "state":
            if value in used:
                raise _fail(graph, owner, f"yields the state {value} after it was appended to")
            used.add(value)
    outer = (used - spent) & known
    if outer and isinstance(owner, Loop):
        raise _fail(graph, owner, f"goes on with {min(map(str, outer))}, a state from outside of the loop")
    return outer


def _check_types(graph: Graph, item: Node) -> None:
    for name, slot in item.layout.uses:
        given = getattr(item, name)
        for operand in given if isinstance(given, tuple) else (given,):
            state = isinstance(operand, Value) and operand.type == "state"
            if slot.type != ANYTHING and state != (slot.type == "state"):
                wanted = "a state" if slot.type == "state" else "not a state"
                raise _fail(graph, item, f"{name} is {operand}, which must be {wanted}")


def _check_symbols(graph: Graph, item: Node, module: Module) -> None:
    for value in item.attrs.values():
        if isinstance(value, Symbol) and value.name not in module.constraints:
            known = ", ".join(f"@{name}" for name in module.constraints) or "none"
            raise _fail(graph, item, f"the constraint {value} is not defined; there are {known}")
    if isinstance(item, Call):
        callee = module.graphs.get(item.symbol.name)
        if callee is None:
            raise _fail(graph, item, f"the graph {item.symbol} is not defined")
        if len(callee.params) != len(item.args):
            raise _fail(
                graph, item, f"{item.symbol} takes {len(callee.params)} arguments, got {len(item.args)}"
            )
        for param, arg in zip(callee.params, item.args, strict=True):
            if not fits(type_of(arg), param.type):
                raise _fail(graph, item, f"{param} of {item.symbol} is a {param.type}, not {type_of(arg)}")
