"""Types of operands, and which may stand where."""

from __future__ import annotations

from typing import Any

from sglc.errors import IRError
from sglc.ir.slots import Value


def type_of(operand: Any) -> str:
    """The type of an operand, be it a value or a constant."""
    if isinstance(operand, Value):
        return operand.type
    if isinstance(operand, bool):
        return "bool"
    for kind in (int, float, str):
        if isinstance(operand, kind):
            return kind.__name__
    return "any"


def fits(given: str, wanted: str) -> bool:
    """Whether a value of one type may stand where the other is wanted; `any` is checked when the plan runs."""
    return given == wanted or "any" in (given, wanted) or (given == "int" and wanted == "float")


def check_results(owner: str, given: tuple[Any, ...], wanted: tuple[Value, ...]) -> None:
    """Raise IRError if what a region hands on does not fit the values that it becomes."""
    if len(given) != len(wanted):
        raise IRError(f"{owner} gives {len(given)} values where {len(wanted)} are wanted")
    for value, out in zip(given, wanted, strict=True):
        kind = type_of(value)
        same = kind == out.type if "state" in (kind, out.type) else fits(kind, out.type)
        if not same:
            raise IRError(f"{owner} gives {value!r}, a {type_of(value)}, for {out}, a {out.type}")
