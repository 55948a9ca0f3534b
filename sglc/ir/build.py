"""A node from its parts by role: what the parser and the JSON reader have in hand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from sglc.errors import IRError
from sglc.ir.core import Node, Region, Value
from sglc.ir.ops import OPS
from sglc.ir.slots import Role
from sglc.ir.specs import Location, SamplingFields


def build_node(
    op: str,
    defs: Sequence[tuple[str, str | None]],
    operands: Sequence[Any],
    attrs: Mapping[str, Any],
    regions: Sequence[Region] = (),
    at: Location | None = None,
) -> Node:
    """Raises IRError if there is no such op, or the parts do not fit it."""
    if op not in OPS:
        near = difflib.get_close_matches(op, OPS, n=1)
        raise IRError(f"unknown op {op!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    cls = OPS[op]
    layout = cls.layout
    given: dict[str, Any] = {"at": at}
    _share_defs(op, layout.defs, list(defs), given)
    _share_uses(op, layout.uses, list(operands), layout.defaults, given)
    left = dict(attrs)
    for name in layout.attrs:
        if name in left:
            given[name] = left.pop(name)
        elif name not in layout.defaults:
            raise IRError(f"{op}: the attribute {name!r} is missing")
    for name in layout.fields:
        known = SamplingFields.__dataclass_fields__
        given[name] = SamplingFields(**{key: left.pop(key) for key in list(left) if key in known})
    if left:
        known_names = [*layout.attrs, *(SamplingFields.__dataclass_fields__ if layout.fields else ())]
        wrong = next(iter(left))
        near = difflib.get_close_matches(wrong, known_names, n=1)
        raise IRError(f"{op}: unknown attribute {wrong!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if len(regions) != len(layout.regions):
        raise IRError(f"{op}: takes {len(layout.regions)} regions, got {len(regions)}")
    given.update(zip(layout.regions, regions, strict=True))
    return cls(**given)


def _share_defs(
    op: str, slots: Sequence[Any], defs: list[tuple[str, str | None]], given: dict[str, Any]
) -> None:
    singles = sum(slot.role is Role.DEF for _, slot in slots)
    if len(defs) < singles or (len(defs) > singles and singles == len(slots)):
        raise IRError(f"{op}: defines {singles} values, got {len(defs)}")
    for name, slot in slots:
        count = 1 if slot.role is Role.DEF else len(defs)
        values = tuple(Value(n, type_ or slot.type) for n, type_ in defs[:count])
        given[name] = values[0] if slot.role is Role.DEF else values
        del defs[:count]


def _share_uses(
    op: str, slots: Sequence[Any], operands: list[Any], defaults: Mapping[str, Any], given: dict[str, Any]
) -> None:
    for name, slot in slots:
        if slot.role is Role.USES:
            given[name] = tuple(operands)
            operands.clear()
        elif operands:
            given[name] = operands.pop(0)
        elif name not in defaults:
            raise IRError(f"{op}: the operand {name!r} is missing")
    if operands:
        raise IRError(f"{op}: {len(operands)} operands too many")
