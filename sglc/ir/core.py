"""Nodes, graphs and modules: immutable data in SSA form.

The annotations of a node's fields say what they are (ir/slots.py), so that an op is complete where it is
declared (ir/ops.py). Nothing here is ever changed: a pass builds new nodes and a new graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar, TypeVar, dataclass_transform

from runtime.api import Constraint
from sglc.errors import IRError
from sglc.ir.slots import Layout, Operand, Role, Symbol, Value, lay_out
from sglc.ir.specs import Location

N = TypeVar("N", bound="Node")


class Licence(Enum):
    """What a pass may do with a node: PURE may be shared, dropped and repeated; SAMPLED gives another answer each
    time, so it runs exactly as often as written; EFFECT also runs in the order written; STATE builds a prompt and
    costs nothing."""

    PURE = "pure"
    SAMPLED = "sampled"
    EFFECT = "effect"
    STATE = "state"


@dataclass(frozen=True, eq=False)
class Node:
    """An occurrence of an op. `at`: where in the user's source it was written."""

    at: Location | None = field(default=None, kw_only=True)

    op: ClassVar[str] = ""
    layout: ClassVar[Layout]

    def __init_subclass__(cls, op: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if op:
            cls.op = op

    @cached_property
    def defs(self) -> tuple[Value, ...]:
        found: list[Value] = []
        for name, slot in self.layout.defs:
            value = getattr(self, name)
            if slot.role is Role.DEF:
                found.append(value)
            else:
                found.extend(value)
        return tuple(found)

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        found: list[Operand] = []
        for name, slot in self.layout.uses:
            value = getattr(self, name)
            if slot.role is Role.USE:
                found.append(value)
            else:
                found.extend(value)
        return tuple(found)

    @cached_property
    def uses(self) -> tuple[Value, ...]:
        """Values that the node needs, those of its operands only (regions have their own)."""
        return tuple([v for v in self.operands if isinstance(v, Value)])

    @cached_property
    def captures(self) -> tuple[Value, ...]:
        """Values from outside that the regions use, each once, in order."""
        if not self.layout.regions:
            return ()
        found: dict[Value, None] = {}
        for region in self.regions:
            found.update(dict.fromkeys(region.free))
        return tuple(found)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes that differ from their default; sampling fields are among them by their own names."""
        found: dict[str, Any] = {}
        for name in self.layout.attrs:
            value = getattr(self, name)
            if name not in self.layout.defaults or self.layout.defaults[name] != value:
                found[name] = value
        for name in self.layout.fields:
            group = getattr(self, name)
            for key in group.__dataclass_fields__:
                if getattr(group, key) is not None:
                    found[key] = getattr(group, key)
        return found

    @property
    def regions(self) -> tuple[Region, ...]:
        names = self.layout.regions
        return tuple([getattr(self, name) for name in names]) if names else ()

    @property
    def licence(self) -> Licence:
        return Licence.STATE

    def remap(self, to: Mapping[Value, Operand]) -> Node:
        """The same node with other operands, in its regions too; itself if none of them changes."""
        if to.keys().isdisjoint(self.uses) and to.keys().isdisjoint(self.captures):
            return self
        changed: dict[str, Any] = {n: getattr(self, n).remap(to) for n in self.layout.regions}
        for name, slot in self.layout.uses:
            old = getattr(self, name)
            if slot.role is Role.USES:
                changed[name] = tuple(to.get(v, v) if isinstance(v, Value) else v for v in old)
            elif isinstance(old, Value):
                changed[name] = to.get(old, old)
        return dataclasses.replace(self, **changed)

    def verify(self) -> None:
        """Raise IRError for what the roles of the fields cannot say."""

    def __str__(self) -> str:
        from sglc.ir.printer import print_node

        return print_node(self)


@dataclass_transform(frozen_default=True, eq_default=False)
def node(cls: type[N]) -> type[N]:
    """Make a class of nodes: a frozen dataclass, compared by identity, whose fields have roles."""
    made = dataclass(frozen=True, eq=False)(cls)
    made.layout = lay_out(made)
    return made


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of one arm of an `if` or of the body of a `loop`; `results` are what it hands to its owner.

    They may use values that were defined before the owner; what they define is known only here. `params` are given
    by the owner.
    """

    nodes: tuple[Node, ...]
    results: tuple[Operand, ...] = ()
    params: tuple[Value, ...] = ()

    @cached_property
    def free(self) -> tuple[Value, ...]:
        """Values from outside that the region uses, each once, in order."""
        own = set(self.params)
        found: dict[Value, None] = {}
        for item in self.nodes:
            found.update((v, None) for v in (*item.uses, *item.captures) if v not in own)
            own.update(item.defs)
        found.update((v, None) for v in self.results if isinstance(v, Value) and v not in own)
        return tuple(found)

    def remap(self, to: Mapping[Value, Operand]) -> Region:
        if to.keys().isdisjoint(self.free):
            return self
        results = tuple(to.get(v, v) if isinstance(v, Value) else v for v in self.results)
        return Region(tuple(item.remap(to) for item in self.nodes), results, self.params)


class Names:
    """Hands out names that a graph does not use yet."""

    def __init__(self, taken: Iterable[str]) -> None:
        numbers = [int(name) for name in taken if name.isdecimal()]
        self._next = max(numbers, default=-1) + 1

    @property
    def next(self) -> int:
        """No name from this number on is taken."""
        return self._next

    def jump(self, number: int) -> None:
        """Leave out the names up to `number`."""
        self._next = max(self._next, number)

    def fresh(self, type: str) -> Value:
        value = Value(str(self._next), type)
        self._next += 1
        return value


@dataclass(frozen=True, eq=False)
class Graph:
    """The IR of one program: parameters, then nodes in order; the last one is `return` or `break`.

    `source` is the file of the program, `constants` what it was specialised on (name and printed value).
    """

    name: str
    params: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: tuple[tuple[str, str], ...] = ()

    def names(self) -> Names:
        taken = [p.name for p in self.params]
        for item in self.walk():
            taken.extend(v.name for v in item.defs)
            taken.extend(v.name for region in item.regions for v in region.params)
        return Names(taken)

    def walk(self) -> Iterator[Node]:
        """All nodes, those inside regions after their owner."""
        return walk(self.nodes)

    def nodes_of(self, kind: type[N]) -> list[N]:
        return [item for item in self.walk() if isinstance(item, kind)]

    def with_nodes(self, nodes: Sequence[Node]) -> Graph:
        return dataclasses.replace(self, nodes=tuple(nodes))

    def replace_nodes(self, changes: Mapping[Node, Sequence[Node]]) -> Graph:
        """Put other nodes in the place of some, in regions too; an empty sequence removes."""
        return self.with_nodes(replaced(self.nodes, changes))

    def remap(self, to: Mapping[Value, Operand]) -> Graph:
        return self.with_nodes([item.remap(to) for item in self.nodes]) if to else self

    def __str__(self) -> str:
        from sglc.ir.printer import print_graph

        return print_graph(self)


def replaced(nodes: Sequence[Node], changes: Mapping[Node, Sequence[Node]]) -> tuple[Node, ...]:
    """Nodes with others in the place of some, in their regions too."""
    found: list[Node] = []
    for item in nodes:
        if item in changes:
            found.extend(changes[item])
        elif not item.regions:
            found.append(item)
        else:
            inner = {n: getattr(item, n) for n in item.layout.regions}
            new = {n: dataclasses.replace(r, nodes=replaced(r.nodes, changes)) for n, r in inner.items()}
            same = all(new[n].nodes == inner[n].nodes for n in inner)
            found.append(item if same else dataclasses.replace(item, **new))
    return tuple(found)


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    for item in nodes:
        yield item
        if item.layout.regions:
            for region in item.regions:
                yield from walk(region.nodes)


@dataclass(frozen=True, eq=False)
class Module:
    """A compilation unit. `main` names the graph that runs; constraints are named by symbols without their @, and `facts`
    are what is known of them once they are compiled: states, classes, min_tokens."""

    graphs: Mapping[str, Graph]
    main: str
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.graphs[self.main]

    def graph_of(self, symbol: Symbol) -> Graph:
        if symbol.name not in self.graphs:
            raise IRError(
                f"{symbol} is not a graph of this module; there are {', '.join(self.graphs) or 'none'}"
            )
        return self.graphs[symbol.name]

    def constraint_of(self, symbol: Symbol) -> Constraint:
        if symbol.name not in self.constraints:
            known = ", ".join(self.constraints) or "none"
            raise IRError(f"{symbol} is not a constraint of this module; there are {known}")
        return self.constraints[symbol.name]

    def map(self, change: Any) -> Module:
        """The module with `change` applied to each of its graphs."""
        return dataclasses.replace(self, graphs={name: change(graph) for name, graph in self.graphs.items()})

    def __str__(self) -> str:
        from sglc.ir.printer import print_module

        return print_module(self)
