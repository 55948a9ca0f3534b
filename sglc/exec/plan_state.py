"""The state of a compiled run, as its caller sees it: the same reading as from a live state.

Nothing is kept twice: text, variables and messages are put together from the Execution when they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from runtime.plan import Choose, Decode, Either, Named, Output, Part, Ref, Rope, Rounds
from sglc.errors import RunError
from sglc.exec.executor import Execution
from sglc.exec.readings import ABSENT, MISSING
from sglc.ir.specs import GenSpec, ImageSpec, Location, SelectSpec

log = logging.getLogger("sglc")


class PlanState:
    """A `Sink` (lang/sink.py) that can be read; the body that would append to it has ended."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._named: dict[str | None, Named] = {named.name: named for named in execution.plan.variables}
        self._given: dict[Any, Any] = {}

    @staticmethod
    def tell(error: RunError) -> None:
        """Somebody is told of it."""
        error.seen = True

    def __del__(self) -> None:
        error = self._execution.state_error
        if error is not None and not error.seen:
            error.seen = True
            log.error("a run failed and nobody looked at its error: %s", error)

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, name: Any, at: Location | None, timeout: float | None = None) -> Any:
        if name in self._given:
            return self._given[name]
        run = self._execution
        named = self._named.get(name)

        def ready() -> bool:
            if named is None or run.over or self._error() is not None:
                return True
            return run.value_of(named.value) is not MISSING

        run.wait(ready, timeout)
        value = MISSING if named is None else run.value_of(named.value)
        error = self._error() or (
            run.error_of(named.value) if named is not None and value is MISSING else None
        )
        if error is not None:
            self.tell(error)
            raise error
        if value is MISSING or value is ABSENT:
            raise KeyError(name)
        return value

    def _error(self) -> RunError | None:
        run = self._execution
        return run.state_error or (run.read_error if run.session.stream else None)

    def has(self, name: Any) -> bool:
        if name in self._given:
            return True
        named = self._named.get(name)
        if named is None:
            return False
        value = self._execution.value_of(named.value)
        return value is not MISSING and value is not ABSENT

    def assign(self, name: Any, value: Any) -> None:
        self._given[name] = value

    def meta(self, name: Any, timeout: float | None = None) -> dict[str, Any] | None:
        named = self._named.get(name)
        if named is None or named.step < 0:
            return None
        if name not in self._given and self._absent(named, timeout):
            return None
        self.read(name, None, timeout)
        return self._execution.meta_of(named.step)

    def _absent(self, named: Named, timeout: float | None) -> bool:
        """Whether the path taken does not define it; waits until that is known."""
        run = self._execution
        run.wait(
            lambda: run.over or self._error() is not None or run.value_of(named.value) is not MISSING, timeout
        )
        return run.value_of(named.value) is ABSENT

    def variables(self) -> dict[Any, Any]:
        """All variables that have a value."""
        self.sync()
        run = self._execution
        found = {name: run.value_of(named.value) for name, named in self._named.items()}
        there = {n: v for n, v in found.items() if v is not MISSING and v is not ABSENT}
        return {**there, **self._given}

    def sync(self) -> None:
        run = self._execution
        run.wait(lambda: run.over)

    finish = sync

    def error(self) -> BaseException | None:
        self.sync()
        error = self._error()
        if error is not None:
            self.tell(error)
        return error

    def messages(self) -> list[dict[str, Any]]:
        self.sync()
        return self._execution.messages_to(self._execution.plan.messages)

    def full_text(self) -> str:
        self.sync()
        return "".join(self._known_text(self._parts()))

    def _known_text(self, parts: Rope) -> Iterator[str]:
        """Text as far as it is there."""
        run = self._execution
        for part in parts:
            if run.value_of(part) is not MISSING:
                yield run.text_of(part)
            elif isinstance(part, (Either, Rounds)) and (run.is_open(part) or isinstance(part, Rounds)):
                yield from self._known_text(run.inside(part))
                return
            else:
                return

    def _parts(self) -> Rope:
        plan = self._execution.plan
        chain: list[Rope] = []
        prefix = plan.text
        while prefix >= 0:
            chain.append(plan.prefixes[prefix].parts)
            prefix = plan.prefixes[prefix].parent
        return tuple(part for parts in reversed(chain) for part in parts)

    # -- streams ------------------------------------------------------------------------------------------------

    def chunks(self, name: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        run = self._execution
        if not run.session.stream:
            yield (self.full_text() if name is None else self.read(name, None)), self.meta(name)
            return
        if name is None:
            for part in self._parts():
                yield from self._chunks_of(part)
            self.sync()
        else:
            named = self._named.get(name)
            own = named is not None and named.value == Ref(
                named.step
            )  # else it is a part of what a call wrote
            if named is not None and own and (step := self._call_of(named)) >= 0:
                yield from self._chunks_of(Output(step))
            elif named is not None:
                yield self.read(name, None), self.meta(name)
        error = self._error()
        if error is not None:
            self.tell(error)
            raise error

    def _call_of(self, named: Named) -> int:
        """The call that writes a variable, once the conditions that decide it are known; -1 if there is none."""
        run = self._execution
        run.wait(lambda: run.over or run.call_of(named.step) is not None)
        found = run.call_of(named.step)
        return -1 if found is None else found

    def _chunks_of_rounds(self, part: Rounds) -> Iterator[tuple[str, dict[str, Any] | None]]:
        run, seen = self._execution, 0

        def more() -> bool:
            return run.over or len(run.rounds(part.repeat)) > seen or run.values[part.repeat] is not MISSING

        while True:
            run.wait(more)
            if len(run.rounds(part.repeat)) == seen:
                return
            for inner in run.added(run.rounds(part.repeat)[seen], part):
                yield from self._chunks_of(inner)
            seen += 1

    def _chunks_of(self, part: Part) -> Iterator[tuple[str, dict[str, Any] | None]]:
        run = self._execution
        if isinstance(part, Either):
            run.wait(lambda: run.over or run.values[part.cond] is not MISSING)
            if run.is_open(part):
                for inner in run.inside(part):
                    yield from self._chunks_of(inner)
            return
        if isinstance(part, Rounds):
            yield from self._chunks_of_rounds(part)
            return
        if not isinstance(part, (Output, Ref)) or not isinstance(run.steps[part.step], (Decode, Choose)):
            run.wait(lambda: run.over or run.value_of(part) is not MISSING)
            if run.value_of(part) is not MISSING and (text := run.text_of(part)):
                yield text, None
            return
        if isinstance(part, Ref):
            run.wait(lambda: run.over or run.value_of(part) is not MISSING)
            if run.value_of(part) is not MISSING:
                yield run.text_of(part), None
            return
        step, seen = part.step, 0

        def more() -> bool:
            answer = run.answers.get(step)
            return run.over or (answer is not None and (answer.over or len(answer.chunks) > seen))

        while True:
            run.wait(more)
            answer = run.answers.get(step)
            found = answer.chunks[seen:] if answer is not None else []
            seen += len(found)
            yield from found
            if not found and (answer is None or answer.over or run.over):
                return

    # -- appending: the body is over ------------------------------------------------------------------------------

    def _over(self, what: str, at: Location | None) -> NoReturn:
        raise RunError(
            f"{what}: this is the state of a compiled run that has ended; append in the program itself", at
        )

    def text(self, value: Any, at: Location | None) -> None:
        self._over("text is appended", at)

    def gen(self, spec: GenSpec, at: Location | None) -> None:
        self._over("a gen is appended", at)

    def select(self, spec: SelectSpec, at: Location | None) -> None:
        self._over("a select is appended", at)

    def image(self, spec: ImageSpec, at: Location | None) -> None:
        self._over("an image is appended", at)

    def role_begin(self, role: str, at: Location | None) -> None:
        self._over(f"a {role} message begins", at)

    def role_end(self, role: str, at: Location | None) -> None:
        self._over(f"a {role} message ends", at)

    def scope_begin(self, name: str, at: Location | None) -> None:
        self._over(f"the scope {name!r} begins", at)

    def scope_end(self, name: str, at: Location | None) -> None:
        self._over(f"the scope {name!r} ends", at)

    def fork(self, size: int, at: Location | None) -> Sequence[Any]:
        self._over("it is forked", at)

    def join(self, children: Sequence[Any], mode: str, at: Location | None) -> None:
        self._over("branches are joined", at)
