"""Values that are not known while a program is traced: arguments, what the model wrote, and what is made of them.

A `TracedStr` is not a `str`. What can be said about it in IR (`+`, `.strip()`, `==`, f-strings of a decorated
function, ...) makes a node; whatever would need its characters raises GraphBreak, so that nothing
traced can silently become a wrong constant. The recorder (lang/trace.py) is reached through `record`.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn, Protocol

from sglc.errors import GraphBreak
from sglc.ir.core import Operand, Value
from sglc.ir.specs import Location


class Recorder(Protocol):
    """What traced values need of the trace."""

    def compute(self, op: str, *operands: Any) -> Traced: ...

    def where(self) -> Location | None: ...

    def decide(self, value: Traced) -> bool: ...

    def settle(self, value: Traced) -> Any: ...

    def at_point(self, point: int, kind: str, names: tuple[str, ...], frame: FrameType) -> None: ...

    def host(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def call(
        self, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sampling: Any = None
    ) -> Any: ...


# The trace that is recording in this context, if any: a decorated function called meanwhile is a `call` node.
ACTIVE: ContextVar[Recorder | None] = ContextVar("sglc-active-trace", default=None)


class Traced:
    """Root of traced values. `needs`: the arguments that it is made of; None if a generation is among its sources."""

    __slots__ = ("label", "needs", "recorder", "value")

    def __init__(self, recorder: Recorder, value: Operand, label: str, needs: frozenset[str] | None) -> None:
        self.recorder = recorder
        self.value = value
        self.label = label
        self.needs = needs

    def stop(self, what: str, remedy: str) -> NoReturn:
        """Raise GraphBreak: `what` cannot be done while tracing."""
        if self.needs is None:
            reason = (
                f"the value of {self.label} is not known until the model has answered, and {what} needs it"
            )
        else:
            reason = (
                f"the value of {self.label} is not known while the program is traced, and {what} needs it"
            )
        error = GraphBreak(f"{reason}. {remedy}", self.recorder.where())
        error.needs = self.needs
        raise error

    def _op(self, op: str, *operands: Any) -> Any:
        return self.recorder.compute(op, *operands)

    # What would need the value itself.

    def __bool__(self) -> bool:
        return self.recorder.decide(self)

    def __str__(self) -> str:
        self.stop(
            "str()", "Append it, join it with +, or write it in an f-string of the decorated function itself"
        )

    def __repr__(self) -> str:
        return f"<traced {self.label}>"

    def __format__(self, spec: str) -> str:
        self.stop("a format", "Write the f-string in the decorated function itself, or join the parts with +")

    def __iter__(self) -> Any:
        self.stop("a loop over it", "Loop over a range of known length, and index it")

    def __len__(self) -> int:
        self.stop("len()", "Let this part run interpreted")

    def __int__(self) -> int:
        self.stop("int()", "Let this part run interpreted")

    def __float__(self) -> float:
        self.stop("float()", "Let this part run interpreted")

    def __index__(self) -> int:
        self.stop("an index", "Let this part run interpreted")

    def __contains__(self, part: Any) -> Any:
        return bool(self._op("contains", self, part))

    def __hash__(self) -> int:
        found = self.recorder.settle(self)
        if found is None:
            self.stop("a lookup in a dict or set", "Compare it with ==, or let this part run interpreted")
        return hash(found)

    def __eq__(self, other: Any) -> Any:
        return self._op("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return self._op("not", self._op("eq", self, other))

    def __lt__(self, other: Any) -> Any:
        return self._op("lt", self, other)

    def __gt__(self, other: Any) -> Any:
        return self._op("lt", other, self)

    def __le__(self, other: Any) -> Any:
        return self._op("le", self, other)

    def __ge__(self, other: Any) -> Any:
        return self._op("le", other, self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.stop(f".{name}", "Let this part run interpreted")


class TracedBool(Traced):
    """The outcome of a comparison."""

    __slots__ = ()

    def __and__(self, other: Any) -> Any:
        return self._op("and", self, other)

    def __or__(self, other: Any) -> Any:
        return self._op("or", self, other)

    def __invert__(self) -> Any:
        return self._op("not", self)


class TracedList(Traced):
    """A list of strings whose length is not known: what `split` gives, or a gen with several samples."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._op("slice", self, *_bounds(self, index))
        return self._op("item", self, index)


class TracedStr(Traced):
    """A string that is not known yet."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        if isinstance(other, (str, TracedStr)):
            return self._op("concat", self, other)
        return NotImplemented

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, (str, TracedStr)):
            return self._op("concat", other, self)
        return NotImplemented

    def __mul__(self, times: int) -> Any:
        return self._op("repeat", self, times) if isinstance(times, int) else NotImplemented

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Any:
        self.stop("%", "Write an f-string in the decorated function itself, or join the parts with +")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._op("slice", self, *_bounds(self, index))
        return self._op("item", self, index)

    def strip(self, chars: Any = None) -> Any:
        return self._op("strip", self, chars)

    def lstrip(self, chars: Any = None) -> Any:
        return self._op("lstrip", self, chars)

    def rstrip(self, chars: Any = None) -> Any:
        return self._op("rstrip", self, chars)

    def lower(self) -> Any:
        return self._op("lower", self)

    def upper(self) -> Any:
        return self._op("upper", self)

    def title(self) -> Any:
        return self._op("title", self)

    def capitalize(self) -> Any:
        return self._op("capitalize", self)

    def removeprefix(self, prefix: Any) -> Any:
        return self._op("removeprefix", self, prefix)

    def removesuffix(self, suffix: Any) -> Any:
        return self._op("removesuffix", self, suffix)

    def replace(self, old: Any, new: Any, count: int = -1) -> Any:
        return self._op("replace", self, old, new, count)

    def split(self, sep: Any = None, maxsplit: int = -1) -> Any:
        return self._op("split", self, sep, maxsplit)

    def splitlines(self) -> Any:
        return self._op("splitlines", self)

    def startswith(self, prefix: Any) -> Any:
        return self._op("startswith", self, prefix)

    def endswith(self, suffix: Any) -> Any:
        return self._op("endswith", self, suffix)


def _bounds(value: Traced, index: slice) -> tuple[Any, Any, Any]:
    for bound in (index.start, index.stop, index.step):
        if bound is not None and not isinstance(bound, int):
            value.stop(f"a slice to {bound!r}", "Slice with known numbers")
    return index.start, index.stop, index.step


def operand(value: Any) -> Operand:
    """What stands for `value` in a node. Raises TypeError for what IR has no constants of."""
    if isinstance(value, Traced):
        return value.value
    if value is None or isinstance(value, (str, int, float, bool, Value)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot stand in the IR: {value!r}")
