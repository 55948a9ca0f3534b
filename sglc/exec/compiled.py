"""A compiled program: traced, optimised and lowered once for each kind of arguments, then run from its plan.

Strings among the arguments may differ from run to run. Other arguments, and the global values that the body
reads, are constants of a plan: new ones make a new plan. Where the body does more than build its state, or
cannot be traced, the Python function itself runs, and `breaks` says why; the plan of what comes before the break
runs ahead of it (exec/replay.py). So compiling changes speed only.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from runtime.api import Constraint
from runtime.backends.base import Capabilities, PreparesConstraints
from sglc.config import global_config
from sglc.errors import GraphBreak, SglcError
from sglc.exec.batch import interpret_batch
from sglc.exec.executor import Execution
from sglc.exec.failures import as_raised
from sglc.exec.interpreter import interpret
from sglc.exec.plan_state import PlanState
from sglc.exec.replay import replay, schedule_until
from sglc.exec.row_groups import RowGroups, Warmup, groups_of
from sglc.exec.schedule import Schedule
from sglc.exec.session import Session
from sglc.ir.core import Module
from sglc.ir.lacks import of_image
from sglc.ir.ops import Image
from sglc.ir.specs import Location, SamplingFields
from sglc.lang.async_runs import AsyncRuns
from sglc.lang.chat_template import chat_template_for
from sglc.lang.choices import METHODS, ChoicesDecision, decide
from sglc.lang.prefix import until_break
from sglc.lang.program import Program, _with_sampling, resolve_backend
from sglc.lang.purity import Break, Purity, Unplain, freeze
from sglc.lang.state import ProgramState
from sglc.lang.trace import traced
from sglc.lang.typed import Types
from sglc.passes.pipeline import DEFAULT, Pipeline
from sglc.plan.lower import lower

MAX_PLANS = 128  # kept; the one used longest ago is dropped
ROWS_IN_FLIGHT = 1024


@dataclass(frozen=True)
class _Compiled:
    """What one kind of arguments became: a schedule, or nothing if it runs interpreted. `ahead`: the schedule of what
    comes before the break. `constraints`: those of either, in order. `shows`: where an image is shown, if one is."""

    schedule: Schedule | None
    reads: tuple[Purity, ...] = ()
    guards: tuple[Any, ...] = ()
    ahead: Schedule | None = None
    constraints: tuple[Constraint, ...] = ()
    shows: Image | None = None

    def holds(self) -> bool:
        """Whether the global values that it was made for are still the same."""
        return self.guards == _guards(self.reads)


def _first_image(module: Module) -> Image | None:
    nodes = (node for graph in module.graphs.values() for node in graph.walk())
    return next((node for node in nodes if isinstance(node, Image)), None)


def _guards(reads: Sequence[Purity]) -> tuple[Any, ...]:
    try:
        return tuple(p.guards() for p in reads)
    except (Unplain, NameError):
        return ("changed",)


def _decide(method: str, choices: tuple[str, ...], result: Any) -> ChoicesDecision:
    return decide(METHODS[method], choices, result)


class CompiledProgram(AsyncRuns):
    """What `program.compile()` returns: the same `run` and `run_batch`. `breaks` are the reasons for runs that were
    interpreted; `modules()` the optimised IR of the others."""

    def __init__(
        self, program: Program, *, backend: Any = None, passes: str | None = None, verify: bool = False
    ) -> None:
        self.program = program
        self.backend = backend
        self.pipeline = Pipeline.parse(DEFAULT if passes is None else passes)
        self.verify = verify
        self.breaks: list[Break] = []
        self.__name__ = program.__name__
        self._plans: OrderedDict[Any, _Compiled] = OrderedDict()
        self._modules: dict[Any, Module] = {}
        self._constants: frozenset[str] = frozenset()  # strings that a plan had to know
        self._prepared: weakref.WeakKeyDictionary[Any, set[Constraint]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def modules(self) -> list[Module]:
        """The optimised IR of every kind of arguments that was compiled so far."""
        return list(self._modules.values())

    # -- compiling ----------------------------------------------------------------------------------------------

    def schedule(self, arguments: Mapping[str, Any], template: Any) -> Schedule | None:
        """The plan for these arguments, compiled if there is none yet; None if they run interpreted."""
        return self._compiled(arguments, template).schedule

    def _compiled(self, arguments: Mapping[str, Any], template: Any) -> _Compiled:
        with self._lock:
            while True:
                known = self._constants
                try:
                    key = self._key(arguments, template)
                except Unplain as error:
                    self._note(Break(f"{self.__name__} has an argument that is {error}"))
                    return _Compiled(None)
                found = self._plans.get(key)
                if found is None or not found.holds():
                    found = self._compile(arguments, template, key)
                    if self._constants != known:
                        continue
                self._plans[key] = found
                self._plans.move_to_end(key)
                while len(self._plans) > MAX_PLANS:
                    dropped, _ = self._plans.popitem(last=False)
                    self._modules.pop(dropped, None)
                return found

    def _key(self, arguments: Mapping[str, Any], template: Any) -> Any:
        shapes: list[Any] = [repr(template)]
        for name, value in arguments.items():
            unknown = type(value) is str and name not in self._constants
            shapes.append((name, None) if unknown else (name, freeze(value)))
        return tuple(shapes)

    def _compile(self, arguments: Mapping[str, Any], template: Any, key: Any) -> _Compiled:
        reads: list[Purity] = []
        if self.program.num_api_spec_tokens is not None:
            code = self.program.func.__code__
            self._note(
                Break(
                    f"{self.__name__} has num_api_spec_tokens, so its gens are served from what the model wrote before them",
                    Location(code.co_filename, code.co_firstlineno),
                )
            )
            return _Compiled(None)
        try:
            module, reads = traced(self.program, arguments)
            unknown = {p.name for p in module.graph.params}
            named = {n for n, v in arguments.items() if type(v) is str and n not in unknown}
            if not named <= self._constants:
                self._constants |= named
                return _Compiled(None)  # the key was wrong: these strings belong into it
            module = self.pipeline.run(module, verify=self.verify)
            plan = lower(module, template)
        except GraphBreak as error:
            return self._broken(arguments, template, key, error)
        except SglcError as error:
            self._note(Break(error.message, error.at))
            return _Compiled(None, tuple(reads), _guards(reads))
        self._modules[key] = module
        wanted = tuple(module.constraints.values())
        shows = _first_image(module)
        return _Compiled(Schedule.of(plan), tuple(reads), _guards(reads), constraints=wanted, shows=shows)

    def _broken(self, arguments: Mapping[str, Any], template: Any, key: Any, whole: GraphBreak) -> _Compiled:
        """What can be done ahead of the function: the part before the break, as it was written."""
        unknown = frozenset(n for n, v in arguments.items() if type(v) is str and n not in self._constants)
        try:
            found = until_break(self.program, arguments, unknown, whole)
            if found is None:
                self._note(Break(whole.message, whole.at))
                return _Compiled(None)
            module, reads = found
            end = module.graph.nodes[-1]
            self._note(Break(getattr(end, "reason", whole.message), end.at))
            ahead = schedule_until(module, template)
        except SglcError as error:
            self._note(Break(error.message, error.at))
            return _Compiled(None)
        self._modules[key] = module
        wanted = tuple(module.constraints.values())
        return _Compiled(None, tuple(reads), _guards(reads), ahead, wanted, _first_image(module))

    def _prepare(self, compiled: Sequence[_Compiled], backend: Any) -> None:
        """Have the backend compile constraints while the run is on its way to them, each one once."""
        if not any(c.constraints for c in compiled) or not isinstance(backend, PreparesConstraints):
            return
        with self._lock:
            known = self._prepared.setdefault(backend, set())
            new = [c for c in dict.fromkeys(chain(*(c.constraints for c in compiled))) if c not in known]
            known.update(new)
        if new:
            backend.prepare_constraints(new)

    def _on(self, compiled: _Compiled, able: Capabilities) -> _Compiled:
        """What of it runs on a backend: nothing, if it cannot show what the program shows; the function says where."""
        lack = next(of_image(able), None)
        if compiled.shows is None or lack is None:
            return compiled
        self._note(Break(str(lack), compiled.shows.at))
        return _Compiled(None)

    def _note(self, found: Break) -> None:
        if found not in self.breaks:
            self.breaks.append(found)

    # -- running ------------------------------------------------------------------------------------------------

    @_with_sampling
    def run(
        self,
        *args: Any,
        sampling: SamplingFields,
        stream: bool = False,
        backend: Any = None,
        raise_on_error: bool = False,
        **kwargs: Any,
    ) -> ProgramState:
        """Like `Program.run`: returns when all that the body reads is there, while generation may still go on."""
        arguments = self.program.bind_arguments(args, kwargs)
        chosen = resolve_backend(backend or self.backend)
        template = chat_template_for(chosen.model)
        compiled = self._on(self._compiled(arguments, template), chosen.capabilities)
        self._prepare([compiled], chosen)
        schedule = compiled.schedule
        if compiled.ahead is not None and not stream:
            return replay(
                self.program,
                arguments,
                compiled.ahead,
                chosen,
                template,
                sampling,
                decide,
                raise_on_error=raise_on_error,
            )
        if schedule is None:
            return interpret(
                self.program, arguments, chosen, sampling, stream=stream, raise_on_error=raise_on_error
            )
        return run_schedule(
            schedule,
            Session(chosen, template, sampling, stream),
            arguments,
            raise_on_error,
            self.program.types,
        )

    @_with_sampling
    def run_batch(
        self,
        batch_kwargs: Sequence[Any],
        *,
        sampling: SamplingFields,
        backend: Any = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        return_exceptions: bool = False,
        on_done: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Like `Program.run_batch`. Rows need no thread of their own; if one of them has to run interpreted, all do."""
        rows = self.program.bind_rows(batch_kwargs)
        if not rows:
            return []
        chosen = resolve_backend(backend or self.backend)
        template = chat_template_for(chosen.model)
        compiled = [self._on(self._compiled(row, template), chosen.capabilities) for row in rows]
        schedules = [c.schedule for c in compiled]
        self._prepare(list({id(c): c for c in compiled}.values()), chosen)
        if any(s is None for s in schedules):
            return interpret_batch(
                self.program,
                rows,
                chosen,
                sampling,
                num_threads=num_threads,
                progress_bar=progress_bar,
                return_exceptions=return_exceptions,
                on_done=on_done,
            )
        groups = groups_of(self.program, rows if global_config.enable_precache_with_tracing else (), chosen)
        limit = num_threads if isinstance(num_threads, int) else ROWS_IN_FLIGHT
        known = [s for s in schedules if s is not None]
        session = Session(chosen, template, sampling)
        return run_schedules(
            known,
            session,
            rows,
            max(limit, 1),
            progress_bar,
            return_exceptions,
            groups,
            self.program.types,
            on_done,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState:
        return self.run(*args, **kwargs)


def run_schedule(
    schedule: Schedule,
    session: Session,
    arguments: Mapping[str, Any],
    raise_on_error: bool = False,
    types: Types | None = None,
) -> ProgramState:
    """One run of a plan. Returns when all that the body reads is there; at once if somebody reads chunks."""
    execution = _execution(schedule, session, arguments)
    state = ProgramState(PlanState(execution), types)
    if session.stream:
        execution.when_over(lambda: _returned(state, execution))
        execution.start()
        return state
    execution.start()
    execution.wait(lambda: execution.reads_done)
    if execution.read_error is not None:
        execution.read_error.seen = True
        raise as_raised(execution.read_error)
    _returned(state, execution)
    if raise_on_error and (error := state.error()) is not None:
        raise error
    _show(state)
    return state


def run_schedules(
    schedules: Sequence[Schedule],
    session: Session,
    rows: Sequence[Mapping[str, Any]],
    limit: int = ROWS_IN_FLIGHT,
    progress_bar: bool = False,
    return_exceptions: bool = False,
    groups: RowGroups | None = None,
    types: Types | None = None,
    on_done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """A run for each row, at most `limit` at a time; finished states in the rows' order."""
    runs = [_execution(s, session, row) for s, row in zip(schedules, rows, strict=True)]
    for number, run in enumerate(runs):
        if on_done is not None:
            run.when_over(partial(_tell, on_done, number, run, types))
    if groups is not None and groups.groups:
        _run_all([runs[k] for k in groups.order], limit, progress_bar, Warmup(groups, session.backend))
    else:
        _run_all(runs, limit, progress_bar)
    return _outcomes(runs, return_exceptions, types)


def _tell(on_done: Callable[[int, Any], None], number: int, run: Execution, types: Types | None) -> None:
    try:
        found = _outcomes([run], True, types)[0]
    except Exception as error:  # the loop, which calls this, has to go on
        found = error
    on_done(number, found)


def _execution(schedule: Schedule, session: Session, arguments: Mapping[str, Any]) -> Execution:
    given = {name: arguments[name] for name in schedule.plan.params}
    return Execution(schedule, session, given, _decide)


def _show(state: ProgramState) -> None:
    if global_config.verbosity >= 2:
        print(state.text())


def _returned(state: ProgramState, execution: Execution) -> None:
    if execution.read_error is None:
        state.ret_value = execution.value_of(execution.plan.result)


def _run_all(runs: Sequence[Execution], limit: int, progress_bar: bool, warmup: Warmup | None = None) -> None:
    """Run all, at most `limit` at a time, in order; each one that ends lets the next one begin."""
    bar = None
    if progress_bar:
        from tqdm import tqdm

        bar = tqdm(total=len(runs))
    done = threading.Event()
    waiting = iter(enumerate(runs))
    left = len(runs)

    def begin(count: int) -> None:  # on the loop; rows that begin together share requests
        for position, run in islice(waiting, count):
            run.when_over(ended)
            task = warmup.before(position) if warmup is not None else None
            if task is None:
                run.begin()
            else:
                task.add_done_callback(lambda _, run=run: run.begin())  # type: ignore[misc]

    def ended() -> None:  # on the loop
        nonlocal left
        left -= 1
        if bar is not None:
            bar.update(1)
        if left:
            begin(1)
        else:
            done.set()

    runs[0].session.loop.call_soon_threadsafe(begin, limit)
    done.wait()
    if bar is not None:
        bar.close()


def _outcomes(runs: Sequence[Execution], return_exceptions: bool, types: Types | None) -> list[Any]:
    found: list[Any] = []
    for run in runs:
        if run.read_error is not None:
            found.append(as_raised(run.read_error))
            continue
        state = ProgramState(PlanState(run), types)
        _returned(state, run)
        _show(state)
        found.append(state)
    if not return_exceptions:
        for item in found:
            if isinstance(item, BaseException):
                raise item
    return found
