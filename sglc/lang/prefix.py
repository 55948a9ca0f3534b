"""What a program surely does before it breaks: a graph that ends in `break`.

A body that cannot be traced whole is run once more, up to the first of: a statement that purity.py found to do
more than build the state (a call is put before it that ends the run, so it never happens), an operation that
tracing refuses, a condition on a value that is not known, a call of a host function. What was recorded until then
happens in every run with these arguments, unless a call of the model fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

from sglc.errors import GraphBreak, SglcError
from sglc.ir.core import Graph, Module, Value
from sglc.ir.ops import Break
from sglc.ir.specs import Location
from sglc.lang.paths import Paths
from sglc.lang.purity import Purity, Unplain, freeze, purity
from sglc.lang.rewrite import traceable
from sglc.lang.trace import Trace, Tracing, trace


def split_arguments(program: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Arguments with their values, and those that stay unknown where `given` are: what has only a string as default, or none."""
    known = {**program.defaults(), **given}
    names = program.parameter_names
    return known, frozenset(n for n in names if n not in given and (n not in known or type(known[n]) is str))


def beginning(program: Any, given: Mapping[str, Any]) -> tuple[Module | None, SglcError | None]:
    """The trace of a program, and why it ends early if it does: then the trace goes as far as it is certain, if that is at all."""
    known, unknown = split_arguments(program, given)
    try:
        return trace(program, known, unknown), None
    except GraphBreak as error:
        own = {n: known[n] for n in program.parameter_names if n in known}
        found = until_break(program, own, unknown, error) if error.__cause__ is None else None
        return (found[0] if found is not None else None), error
    except SglcError as error:
        return None, error


def until_break(
    program: Any, arguments: Mapping[str, Any], symbolic: frozenset[str], whole: GraphBreak
) -> tuple[Module, list[Purity]] | None:
    """The graph of what comes before the break, and what was read of the world outside to make it.

    `whole` is why the program cannot be traced; None if not even its beginning can, or nothing stopped it.
    """
    function = program.func
    constants = {n: v for n, v in arguments.items() if n not in symbolic}
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return None
    try:
        freeze(constants)
    except Unplain:
        return None
    tracing = Tracing()
    checked = tracing.checked[function] = purity(function)
    if (0, 0) in checked.stops:  # its source cannot be read
        return None
    made = _Straight(tracing, program, dict.fromkeys(sorted(symbolic), "str"), constants)
    made.paths = _OneWay(made, (), (), False)
    tracing.open.add((function, tuple(made.symbolic.items()), freeze(constants)))

    def stop(line: int, column: int) -> NoReturn:
        found = checked.stops[line, column]
        raise GraphBreak(found.reason, found.at)

    try:
        made.run(traceable(function, checked.stops.keys(), stop))
    except _Condition:
        first = checked.stops[min(checked.stops)] if checked.stops else None
        end = whole if first is None else GraphBreak(first.reason, first.at)
    except GraphBreak as error:
        end = error
    else:
        return None
    made.flush_reads()
    last = Break(made.root.state, (), end.message, at=end.at)
    params = tuple(Value(n, "str") for n in sorted(symbolic))
    shown = tuple((n, repr(v)) for n, v in constants.items())
    name = tracing.name_for(program.__name__)
    graph = Graph(name, params, (*made.nodes, last), shown)
    return Module({**tracing.graphs, name: graph}, name, tracing.constraints), list(tracing.checked.values())


class _Condition(GraphBreak):
    """A condition on a value that is not known: what comes after it is not certain."""


class _Straight(Trace):
    """Records what happens for certain."""

    def __init__(
        self, tracing: Tracing, program: Any, symbolic: Mapping[str, str], constants: Mapping[str, Any]
    ) -> None:
        super().__init__(tracing, program, symbolic, constants)
        self.symbolic = symbolic

    def host(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise GraphBreak(f"{function.name} is called, which the body itself does", self.where())


class _OneWay(Paths):
    def decide(self, cond: Value, at: Location | None) -> bool:
        _, table = self._table(cond)
        outcomes = {bool(v) for v in table.values()}
        if len(outcomes) == 1:
            return outcomes.pop()
        raise _Condition("a condition on a value that is not known", at)
