"""The string and scalar ops: a class each, made from the table of their meanings (runtime/compute.py), so that folding,
evaluating and executing agree."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from runtime.compute import OPERATIONS, compute
from sglc.errors import IRError
from sglc.ir.core import Licence, Node, node
from sglc.ir.slots import Args, Operand, Role, Slot, Value
from sglc.ir.types import fits, type_of


class Pure(Node):
    """Root of the string and scalar ops, which have one result and any number of operands."""

    if TYPE_CHECKING:
        out: Value
        args: tuple[Operand, ...]
    result: ClassVar[str] = "any"

    @property
    def licence(self) -> Licence:
        return Licence.PURE

    def verify(self) -> None:
        operation = OPERATIONS[self.op]
        least = len(operation.takes) - (1 if operation.variadic else 0)
        if len(self.args) < least or (len(self.args) > least and not operation.variadic):
            raise IRError(f"{self.op}: takes {least} operands, got {len(self.args)}")
        wanted = operation.takes + operation.takes[-1:] * (len(self.args) - len(operation.takes))
        for value, type_ in zip(self.args, wanted, strict=False):
            if not fits(type_of(value), type_):
                raise IRError(f"{self.op}: {value!r} is {type_of(value)} where a {type_} is wanted")

    def compute(self, operands: tuple[Any, ...]) -> Any:
        """The result for operands that are known. Raises runtime.compute.ComputeError."""
        return compute(self.op, operands)


def _pure(name: str) -> type[Node]:
    result = OPERATIONS[name].result
    return node(
        type(
            "".join(part.capitalize() for part in name.split("_")) + "Op",
            (Pure,),
            {
                "__annotations__": {"out": Annotated[Value, Slot(Role.DEF, result)], "args": Args},
                "__doc__": f"`{name}` of its operands (runtime/compute.py).",
                "__module__": __name__,
                "op": name,
                "result": result,
            },
        )
    )


PURE_OPS: Mapping[str, type[Node]] = MappingProxyType({name: _pure(name) for name in OPERATIONS})


def pure(name: str, out: Value, args: tuple[Operand, ...], at: Any = None) -> Pure:
    """A node of one of the string and scalar ops."""
    make: Any = PURE_OPS[name]
    made = make(out, args, at=at)
    assert isinstance(made, Pure)
    return made
