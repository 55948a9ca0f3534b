"""Record what a program does as IR: its body runs once, with values that are not known yet.

`Trace` makes one Graph; `Tracing` the Module around it, with a graph for every program that is called.
Strings among the arguments are traced, so that one graph serves them all; other arguments (numbers,
booleans, lists) are constants of the graph. A string that decides something (a branch, a key, a pattern)
cannot stay unknown: then the body is traced again with that argument as a constant. Only bodies that
lang/purity.py found harmless are run here, so tracing leaves no mark.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NoReturn

from runtime.api import Constraint
from runtime.compute import OPERATIONS
from sglc.errors import GraphBreak, IRError, TraceError
from sglc.ir.core import Graph, Module, Names, Node, Operand, Symbol, Value
from sglc.ir.ops import Begin, Call, Host, Pack, Read, Return
from sglc.ir.pure import pure
from sglc.ir.specs import RUN_DEFAULTS, Location, SamplingFields
from sglc.ir.types import type_of
from sglc.ir.verify import verify_module
from sglc.lang.host import Host as HostFunction
from sglc.lang.host import find_host
from sglc.lang.location import of_user, user_location
from sglc.lang.merge import Explorer
from sglc.lang.paths import Choice, Ended, Paths, Returned, Target, Unmergeable
from sglc.lang.prune import pruned
from sglc.lang.purity import PLAIN, Purity, Unplain, freeze, purity
from sglc.lang.rewrite import traceable
from sglc.lang.state import ProgramState
from sglc.lang.trace_sink import CallSink, TraceSink, type_of_shape
from sglc.lang.values import ACTIVE, Traced, TracedBool, TracedList, TracedStr

MAX_GRAPHS = 256


def trace(program: Any, arguments: Mapping[str, Any], symbolic: frozenset[str] | None = None) -> Module:
    """The IR of one program. See `traced`."""
    return traced(program, arguments, symbolic)[0]


def traced(
    program: Any, arguments: Mapping[str, Any], symbolic: frozenset[str] | None = None
) -> tuple[Module, list[Purity]]:
    """The IR of one program, and what was read of the world outside to make it.

    arguments  values of its parameters, by name; a parameter in `symbolic` needs none
    symbolic   parameters that stay unknown; None: those whose argument is a string, as far as that can be

    Raises TraceError (GraphBreak where a run could go on) with the place in the program's file; the body
    has not been run if it does anything but build its state.
    """
    wanted = (
        symbolic if symbolic is not None else frozenset(n for n, v in arguments.items() if type(v) is str)
    )
    tracing = Tracing()
    names = frozenset(wanted)
    while True:
        try:
            main = tracing.graph(program, arguments, names)
            module = Module(tracing.graphs, main.name, tracing.constraints)
            _check_merged(program, module)
            return module, list(tracing.checked.values())
        except GraphBreak as error:
            known = _needs(error) & names & arguments.keys()
            if not known or symbolic is not None:
                raise
            names -= known
            tracing = Tracing()


def _check_merged(program: Any, module: Module) -> None:
    """Paths that were merged into what no graph can say end the trace; a plan is never made of it."""
    if not any(node.regions for graph in module.graphs.values() for node in graph.nodes):
        return
    try:
        verify_module(module)
    except IRError as error:
        code = program.func.__code__
        at = Location(code.co_filename, code.co_firstlineno)
        raise GraphBreak(f"the paths of {program.__name__} cannot be merged: {error.message}", at) from error


def _needs(error: GraphBreak) -> frozenset[str]:
    return error.needs or frozenset()


@dataclass
class Tracing:
    """The module that is being made: graphs by name, and which one a program's signature has."""

    graphs: dict[str, Graph] = field(default_factory=dict)
    constraints: dict[str, Constraint] = field(default_factory=dict)
    made: dict[Any, Finished] = field(default_factory=dict)
    open: set[Any] = field(default_factory=set)
    checked: dict[Any, Purity] = field(default_factory=dict)

    def graph(self, program: Any, arguments: Mapping[str, Any], symbolic: frozenset[str]) -> Graph:
        return self.finished(program, arguments, dict.fromkeys(sorted(symbolic), "str")).graph

    def finished(self, program: Any, arguments: Mapping[str, Any], symbolic: Mapping[str, str]) -> Finished:
        """The graph of a program for one signature: unknown parameters with their types, the others by value."""
        function = program.func
        constants = {n: v for n, v in arguments.items() if n not in symbolic}
        at = Location(function.__code__.co_filename, function.__code__.co_firstlineno)
        try:
            signature = (function, tuple(symbolic.items()), freeze(constants))
        except Unplain as error:
            name = next(n for n, v in constants.items() if not _is_plain(v))
            raise GraphBreak(
                f"the argument {name} of {program.__name__} is {error}; only strings, numbers and plain lists, tuples "
                "and dicts of them are traced",
                at,
            ) from None
        if signature in self.made:
            return self.made[signature]
        if signature in self.open:
            raise GraphBreak(f"{program.__name__} calls itself without end", at)
        if len(self.graphs) + len(self.open) >= MAX_GRAPHS:
            raise GraphBreak(
                f"more than {MAX_GRAPHS} programs are called, so {program.__name__} is not traced", at
            )
        if function not in self.checked:
            self.checked[function] = purity(function)
        reasons = self.checked[function].breaks
        if reasons:
            raise GraphBreak(f"{program.__name__} is not traced: {reasons[0].reason}", reasons[0].at)
        self.open.add(signature)
        try:
            made = self._explored(program, symbolic, constants)
        finally:
            self.open.discard(signature)
        self.made[signature] = made
        return made

    def _explored(self, program: Any, symbolic: Mapping[str, str], constants: Mapping[str, Any]) -> Finished:
        """Every path of the body as one graph."""
        function = traceable(program.func)

        def run(script: Sequence[Choice], targets: Sequence[Target], loops: bool) -> Trace:
            made = Trace(self, program, symbolic, constants)
            made.paths = Paths(made, script, targets, loops)
            made.run(function)
            return made

        for loops in (True, False):
            explorer = Explorer(run, merge_shapes, loops)
            try:
                items, end = explorer.explore()
                break
            except Unmergeable:  # a loop with several ways out; without loops, every path ends in `return`
                continue
        assert isinstance(end, Returned), end
        nodes = (*pruned([i.node for i in items], {end.state, end.result}), Return(end.state, end.result))
        name = self.name_for(program.__name__)
        shown = tuple((n, repr(v)) for n, v in constants.items())
        params = tuple(Value(n, type_) for n, type_ in symbolic.items())
        graph = Graph(name, params, nodes, shown)
        self.graphs[name] = graph
        return Finished(graph, end.variables, end.shape)

    def name_for(self, wanted: str) -> str:
        taken, name, count = self.graphs, wanted, 1
        while name in taken:
            name, count = f"{wanted}.{count}", count + 1
        return name

    def symbol(self, constraint: Constraint | None) -> Symbol | None:
        if constraint is None:
            return None
        for name, known in self.constraints.items():
            if known == constraint:
                return Symbol(name)
        name = f"c{len(self.constraints)}"
        self.constraints[name] = constraint
        return Symbol(name)


@dataclass(frozen=True)
class Finished:
    """A traced program: its graph, the types of its variables, and the shape of what its body returned."""

    graph: Graph
    variables: Mapping[Any, Any]
    returned: Any


def merge_shapes(a: Any, b: Any) -> Any:
    """The shape of what is one or the other."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [merge_shapes(x, y) for x, y in zip(a, b, strict=True)]
    if type(a) in PLAIN and type(a) is type(b) and a == b:
        return a
    one, two = type_of_shape(a), type_of_shape(b)
    if isinstance(a, Traced) and isinstance(b, Traced) and one == two:
        return a
    owner = a if isinstance(a, Traced) else b
    recorder: Any = owner.recorder if isinstance(owner, Traced) else None
    return Traced(recorder, Value("merged", one if one == two else "any"), "a value of several paths", None)


def _is_plain(value: Any) -> bool:
    try:
        freeze(value)
    except Unplain:
        return False
    return True


class Trace:
    """Records one graph; `sink()` are its states."""

    def __init__(
        self, tracing: Tracing, program: Any, symbolic: Mapping[str, str], constants: Mapping[str, Any]
    ) -> None:
        self.tracing = tracing
        self.program = program
        self.constants = constants
        self.params = tuple(Value(name, type_) for name, type_ in symbolic.items())
        self.nodes: list[Node] = []
        self.reads: dict[Value, Location | None] = {}
        self.samples: dict[Value, Value] = {}  # one sample of a gen -> the list of them
        self.names = Names(())
        self._used: set[Value] = set()  # by the first nodes, as many as have been counted
        self._counted = 0
        self.sinks: list[TraceSink] = []
        self.paths: Paths
        self.root = TraceSink(self, self.emit_state(Begin, None))

    def run(self, function: Any) -> None:
        """Run the body once; `paths.end` says how that ended."""
        state = ProgramState(self.root, self.program.types)
        given = copy.deepcopy(dict(self.constants))  # a body that changes an argument changes this one
        before = freeze(given)
        arguments: dict[str, Any] = dict(given)
        for param in self.params:
            arguments[param.name] = self.wrap(param, f"the argument {param.name}", frozenset({param.name}))
        token = ACTIVE.set(self)
        try:
            returned = function(state, **arguments)
        except TraceError:
            raise
        except Ended as ended:
            self.paths.end = ended.end
            del self.nodes[ended.nodes :]
            return
        except Exception as error:
            at = _raised_at(error, function.__code__.co_filename) or self.where()
            broken = GraphBreak(f"the body raised {type(error).__name__}: {error}", at)
            # It may be that something was given a traced value that only knows strings.
            broken.needs = frozenset(p.name for p in self.params)
            raise broken from error
        finally:
            ACTIVE.reset(token)
        if freeze(given) != before:
            raise GraphBreak(f"{self.program.__name__} changes one of its arguments", self.where())
        result = self.operand(returned, "the result")
        self.flush_reads(result)
        self.paths.end = Returned(self.root.end(), result, dict(self.root.env), returned)

    def flush_reads(self, result: Operand = None) -> None:
        """Record what the body has read so far without making anything of it."""
        if not self.reads:
            return
        for node in self.nodes[self._counted :]:
            self._used.update(node.uses)
        self._counted = len(self.nodes)
        used = self._used
        self.nodes.extend(
            Read(value, at=at) for value, at in self.reads.items() if value not in used and value != result
        )
        self.reads.clear()

    # Conditions.

    def decide(self, value: Traced) -> bool:
        """Which way this path goes at a condition on a value that is not known."""
        if value.needs:
            value.stop("a condition", "Give the argument a value while compiling")
        cond = value if isinstance(value, TracedBool) else self.compute("bool", value)
        if not isinstance(cond.value, Value):
            return bool(cond.value)
        return self.paths.decide(cond.value, self.where())

    def settle(self, value: Traced) -> Any:
        """The value itself, where it is one of a few; None if it is not."""
        return self.paths.settle(value)

    def at_point(self, point: int, kind: str, names: tuple[str, ...], frame: FrameType) -> None:
        if frame.f_code.co_name == self.program.func.__name__:
            self.paths.at_point(point, kind, names, frame)

    def note_read(self, value: Any, at: Location | None) -> None:
        if isinstance(value, list):
            for item in value:
                self.note_read(item, at)
        elif isinstance(value, Traced) and isinstance(value.value, Value):
            self.reads.setdefault(self.samples.get(value.value, value.value), at)

    # Recording.

    def emit_state(self, op: Any, at: Location | None, *operands: Any, **attrs: Any) -> Value:
        out = self.names.fresh("state")
        self.nodes.append(op(out, *operands, **attrs, at=at))
        return out

    def wrap(self, value: Value, label: str, needs: frozenset[str] | None) -> Traced:
        if value.type == "str":
            return TracedStr(self, value, label, needs)
        if value.type == "bool":
            return TracedBool(self, value, label, needs)
        if value.type.startswith("list<"):
            return TracedList(self, value, label, needs)
        return Traced(self, value, label, needs)

    def compute(self, op: str, *operands: Any, type: str | None = None) -> Traced:
        """Record a pure op on traced values and constants."""
        sources = [v for v in operands if isinstance(v, Traced)]
        self.check(sources)
        at = self.where()
        given = tuple(self.operand(v, op, at) for v in operands)
        result = type or OPERATIONS[op].result
        if op in ("item", "slice") and type is None:
            owner = type_of(given[0])
            result = "str" if owner == "str" or op == "item" else owner
            if op == "item" and not (owner == "str" or owner == "list<str>"):
                result = "any"
        value = self.names.fresh(result)
        node = pure(op, value, given, at)
        node.verify()
        self.nodes.append(node)
        self.paths.derive(op, value, given)
        needs: frozenset[str] | None = frozenset()
        for source in sources:
            needs = None if needs is None or source.needs is None else needs | source.needs
        label = f"{op} of {sources[0].label}" if sources else op
        if result == "bool" and sources:
            label = f"a test of {sources[0].label}"
        return self.wrap(value, label, needs)

    def check(self, sources: Sequence[Traced]) -> None:
        for source in sources:
            if source.recorder is not self:
                raise GraphBreak(
                    f"{source.label} belongs to another program than {self.program.__name__}", self.where()
                )

    def operand(self, value: Any, what: str, at: Location | None = None) -> Operand:
        """What stands for a value in a node; lists, tuples and dicts are packed. Raises GraphBreak for the rest."""
        if isinstance(value, Traced):
            self.check([value])
            return value.value
        if type(value) in PLAIN and not isinstance(value, bytes):
            return value
        if type(value) in (list, tuple):
            items = tuple(self.operand(v, what, at) for v in value)
            return self._pack(type(value).__name__, items, (), at)
        if type(value) is dict and all(type(k) is str for k in value):
            items = tuple(self.operand(v, what, at) for v in value.values())
            return self._pack("dict", items, tuple(value), at)
        self.stop(f"{what} is a {type(value).__name__}, which cannot be said in IR", at)

    def _pack(
        self, kind: str, items: tuple[Operand, ...], keys: tuple[str, ...], at: Location | None
    ) -> Value:
        types = {type_of(v) for v in items}
        type_ = "list<str>" if kind == "list" and types == {"str"} else "any"
        value = self.names.fresh(type_)
        self.nodes.append(Pack(value, items, kind, keys, at=at))
        return value

    def stop(self, reason: str, at: Location | None = None, mark: str = "") -> NoReturn:
        error = GraphBreak(reason, at or self.where())
        error.mark = mark
        raise error

    def where(self) -> Location | None:
        """The line of the program that is running."""
        return user_location()

    # Calls of other programs, and of the user's own functions.

    def host(self, function: HostFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call of a function that runs where the program runs."""
        at = self.where()
        if find_host(function.name) is not function:
            self.stop(f"{function.name} cannot be found by its name; define it at the top of a module", at)
        try:
            given = function.positional(args, kwargs)
        except TypeError as error:
            self.stop(f"a call of a host function: {error}", at)
        for value in given:
            kind = type(value).__name__ if isinstance(value, (list, dict, set)) else type_of_shape(value)
            if isinstance(value, (list, dict, set)) or kind.startswith("list<"):
                self.stop(
                    f"{function.name} gets a {kind}, which it might change; give it strings or a tuple", at
                )
        operands = tuple(self.operand(v, f"an argument of {function.name}", at) for v in given)
        self.flush_reads()
        value = self.names.fresh(function.result)
        self.nodes.append(Host(value, operands, function.name, at=at))
        self.reads.setdefault(value, at)
        return self.wrap(value, f"the result of {function.name}", None)

    def call(
        self,
        program: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sampling: SamplingFields | None = None,
    ) -> ProgramState:
        """Record a call; its state can be read like that of a finished run."""
        at = self.where()
        if program.num_api_spec_tokens is not None:
            self.stop(f"{program.__name__} is called, which has num_api_spec_tokens", at)
        try:
            arguments = program.bind_arguments(args, kwargs)
        except TypeError as error:
            self.stop(str(error), at)
        symbolic = {
            n: (v.value.type if isinstance(v, Traced) and isinstance(v.value, Value) else "str")
            for n, v in arguments.items()
            if isinstance(v, Traced) or type(v) is str
        }
        constants = {n: v for n, v in arguments.items() if not isinstance(v, Traced)}
        while True:
            try:
                made = self.tracing.finished(program, constants, symbolic)
                break
            except GraphBreak as error:
                needed = _needs(error) & symbolic.keys()
                unknown = [arguments[n] for n in needed if isinstance(arguments[n], Traced)]
                if unknown:
                    needs = [v.needs for v in unknown]
                    error.needs = None if None in needs else frozenset().union(*needs)  # type: ignore[arg-type]
                    raise
                if not needed:
                    raise
                symbolic = {n: t for n, t in symbolic.items() if n not in needed}
        given = tuple(self.operand(arguments[p.name], p.name, at) for p in made.graph.params)
        return self._record_call(program, made, given, _beyond_defaults(sampling), at)

    def _record_call(
        self,
        program: Any,
        made: Finished,
        args: tuple[Operand, ...],
        sampling: SamplingFields,
        at: Location | None,
    ) -> ProgramState:
        names = tuple(n for n in made.variables if isinstance(n, str))
        text = self.names.fresh("str")
        values = tuple(self.names.fresh(type_of_shape(made.variables[n])) for n in names)
        result = self.names.fresh(type_of_shape(made.returned))
        self.nodes.append(
            Call(text, (*values, result), Symbol(made.graph.name), args, names, sampling, at=at)
        )
        label = program.__name__
        env = {
            n: self._unpack(v, made.variables[n], f'{label}(...)["{n}"]')
            for n, v in zip(names, values, strict=True)
        }
        state = ProgramState(
            CallSink(self, env, self.wrap(text, f"the text of {label}(...)", None)), program.types
        )
        state.ret_value = self._unpack(result, made.returned, f"the result of {label}(...)")
        return state

    def _unpack(self, value: Value, shape: Any, label: str) -> Any:
        """What user code sees of a packed value: real lists, tuples and dicts of traced values."""
        if isinstance(shape, (list, tuple)):
            items = [self._item(value, k, v, label) for k, v in enumerate(shape)]
            return items if isinstance(shape, list) else tuple(items)
        if isinstance(shape, dict):
            return {k: self._item(value, k, v, label) for k, v in shape.items()}
        if not isinstance(shape, Traced):
            return shape
        return self.wrap(value, label, None)

    def _item(self, owner: Value, key: Any, shape: Any, label: str) -> Any:
        if type(shape) in PLAIN:
            return shape
        packed = Traced(self, owner, label, None)
        item = self.compute("item", packed, key, type=type_of_shape(shape))
        assert isinstance(item.value, Value)
        return self._unpack(item.value, shape, f"{label}[{key!r}]")


def _beyond_defaults(sampling: SamplingFields | None) -> SamplingFields:
    """The fields in which a call's defaults differ from those of every run."""
    if sampling is None:
        return SamplingFields()
    names = sampling.__dataclass_fields__
    same = {n: None for n in names if getattr(sampling, n) == getattr(RUN_DEFAULTS, n)}
    return replace(sampling, **same)


def _raised_at(error: BaseException, own: str) -> Location | None:
    """The last line of the program's file on the way to the error, or of any file that is not ours."""
    found, mine, step = None, None, error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if of_user(file):
            found = Location(file, step.tb_lineno)
        if file == own:
            mine = found
        step = step.tb_next
    return mine or found
