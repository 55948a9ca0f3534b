"""Values, and what the fields of a node are.

A field says it by its annotation: what the node defines (`StateDef`, `StrDef`, ...), what it uses (`State`, `Arg`, ...;
an `Arg` may also be a constant), a group of sampling fields, regions; every other field is an attribute. Printer,
parser, JSON and rewriting read these roles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, get_type_hints

from sglc.ir.specs import SamplingFields


@dataclass(frozen=True, slots=True)
class Value:
    """What one node (or a parameter) defines; its name is unique in its graph."""

    name: str
    type: str

    def __hash__(self) -> int:
        return hash(self.name)  # kept by the string; passes look values up all the time

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a graph or of a constraint of the module."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


Constant = str | int | float | bool | None
Operand = Value | Symbol | str | int | float | bool | None

ANYTHING = "*"  # the slot of an operand that may be a state or not
TYPES = frozenset({"state", "str", "int", "float", "bool", "image", "json", "any"})


def is_type(name: str) -> bool:
    """Whether `name` is a type of the IR: one of TYPES, or `list<T>`."""
    while name.startswith("list<") and name.endswith(">"):
        name = name[5:-1]
    return name in TYPES


class Role(Enum):
    DEF = "def"
    DEFS = "defs"
    USE = "use"
    USES = "uses"
    FIELDS = "fields"
    REGIONS = "regions"


@dataclass(frozen=True, slots=True)
class Slot:
    """The role of a field, and for values their type (a default for what is defined, a demand on what is used)."""

    role: Role
    type: str = "any"


StateDef = Annotated[Value, Slot(Role.DEF, "state")]
StrDef = Annotated[Value, Slot(Role.DEF, "str")]
AnyDef = Annotated[Value, Slot(Role.DEF, "any")]
StateDefs = Annotated[tuple[Value, ...], Slot(Role.DEFS, "state")]
StrDefs = Annotated[tuple[Value, ...], Slot(Role.DEFS, "str")]
State = Annotated[Value, Slot(Role.USE, "state")]
States = Annotated[tuple[Value, ...], Slot(Role.USES, "state")]
Arg = Annotated[Operand, Slot(Role.USE)]
Args = Annotated[tuple[Operand, ...], Slot(Role.USES)]
AnyDefs = Annotated[tuple[Value, ...], Slot(Role.DEFS, "any")]
Carried = Annotated[tuple[Operand, ...], Slot(Role.USES, ANYTHING)]
Fields = Annotated[SamplingFields, Slot(Role.FIELDS)]
Inner = Annotated[Any, Slot(Role.REGIONS)]  # a Region


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of a node class's fields by role, in order of declaration."""

    defs: tuple[tuple[str, Slot], ...]
    uses: tuple[tuple[str, Slot], ...]
    attrs: tuple[str, ...]
    fields: tuple[str, ...]
    regions: tuple[str, ...]
    defaults: Mapping[str, Any]


def lay_out(cls: type[Any]) -> Layout:
    """The roles of a node class's fields."""
    hints = get_type_hints(cls, include_extras=True)
    defs: list[tuple[str, Slot]] = []
    uses: list[tuple[str, Slot]] = []
    attrs: list[str] = []
    groups: list[str] = []
    regions: list[str] = []
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(cls):
        if entry.name == "at":
            continue
        if entry.default is not dataclasses.MISSING:
            defaults[entry.name] = entry.default
        slot = next((m for m in getattr(hints[entry.name], "__metadata__", ()) if isinstance(m, Slot)), None)
        if slot is None:
            attrs.append(entry.name)
        elif slot.role in (Role.DEF, Role.DEFS):
            defs.append((entry.name, slot))
        elif slot.role in (Role.USE, Role.USES):
            uses.append((entry.name, slot))
        elif slot.role is Role.FIELDS:
            groups.append(entry.name)
        else:
            regions.append(entry.name)
    return Layout(tuple(defs), tuple(uses), tuple(attrs), tuple(groups), tuple(regions), defaults)
