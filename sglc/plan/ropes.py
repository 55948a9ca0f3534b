"""Ropes of a plan while it is made: prefixes, steps and messages by number, and what a state is.

A state is where its rope ends, the variables it has and the message that is open. Where the arms of a condition meet, what
they appended since they parted becomes an `Either`, and variables that differ become a `Pick`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from runtime.plan import (
    Absent,
    Compute,
    Const,
    Either,
    Gathered,
    Guard,
    ImagePart,
    Named,
    Output,
    Part,
    Pick,
    PlanMessage,
    Ref,
    Rope,
    Rounds,
    Step,
    Variable,
    refs,
)
from sglc.errors import PlanError
from sglc.ir.core import Module
from sglc.ir.ops import (
    Host,
)
from sglc.ir.specs import Location


class Template(Protocol):
    """What lowering needs of a chat template."""

    @property
    def name(self) -> str: ...

    @property
    def default_system_prompt(self) -> str | None: ...

    @property
    def image_token(self) -> str: ...

    def get_prefix_and_suffix(self, role: str, hist_messages: Any) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Mark:
    """A place in a state: `parts` before the end of a prefix; where arms met that each had passed it, an `Either`."""

    prefix: int
    parts: Rope = ()


START = Mark(-1)


@dataclass
class State:
    """What is known of a state."""

    prefix: int = -1
    pending: list[Part] = field(default_factory=list)
    variables: dict[str | None, Named] = field(default_factory=dict)
    messages: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    role: str | None = None
    opened: Mark = START  # before the open message's content
    scopes: dict[str, Mark] = field(default_factory=dict)
    forked: int = -1  # the prefix it was forked at
    said: int = -1  # the last message before the fork, and how many there are
    recalled: int = 0
    calls: list[int] = field(default_factory=list)  # those whose failure is its failure

    def copy(self) -> State:
        return dataclasses.replace(
            self,
            pending=list(self.pending),
            variables=dict(self.variables),
            history=list(self.history),
            scopes=dict(self.scopes),
            forked=self.prefix,
            said=self.messages,
            recalled=len(self.history),
            calls=[],
        )

    def in_arm(self) -> State:
        """The same state, for one arm of an `if`."""
        return dataclasses.replace(
            self,
            pending=list(self.pending),
            variables=dict(self.variables),
            history=list(self.history),
            scopes=dict(self.scopes),
            calls=list(self.calls),
        )


class Ropes:
    """What is made so far."""

    def __init__(self, module: Module, template: Template) -> None:
        self.module = module
        self.template = template
        self.prefixes: list[tuple[int, Rope]] = []
        self.uses: list[int] = []
        self.waves: list[int] = []  # by prefix: the wave in which its text is complete
        self.step_waves: list[int] = []
        self.conversation: list[PlanMessage] = []
        self.steps: list[Step] = []
        self.reads: set[int] = set()
        self.awaited: tuple[
            int, ...
        ] = ()  # what the body has read up to here, for host calls that come after
        self.guard: Guard | None = None
        self.floor = 0  # the wave in which the guard's condition is known
        self.hosts = any(isinstance(n, Host) for g in module.graphs.values() for n in g.walk())
        self.partial: set[int] = set()  # picks that have no value on one side

    def flush(self, state: State) -> int:
        """End the rope here, so that others can go on from it; its number."""
        if state.pending or state.prefix < 0:
            parts = merged(state.pending)
            wave = self.waves[state.prefix] if state.prefix >= 0 else self.floor
            state.prefix = self.prefix(state.prefix, parts, max(wave, self.wave(parts)))
            state.pending = []
        return state.prefix

    def prefix(self, parent: int, parts: Rope, wave: int) -> int:
        self.prefixes.append((parent, parts))
        self.uses.append(0)
        self.waves.append(wave)
        return len(self.prefixes) - 1

    def wave(self, parts: Sequence[Part]) -> int:
        """The wave after which all parts are known."""
        return max((self.step_waves[n] for p in parts for n in refs(p)), default=self.floor)

    def since(self, state: State, mark: int) -> Rope:
        """What was appended since the rope ended at `mark`."""
        found: list[Rope] = [tuple(state.pending)]
        step = state.prefix
        while step != mark:
            if step < 0:
                raise PlanError(
                    f"the graph @{self.module.main}: text is asked for from a place that is not before it"
                )
            parent, parts = self.prefixes[step]
            found.append(parts)
            step = parent
        return merged([part for parts in reversed(found) for part in parts])

    def after(self, state: State, mark: Mark) -> Rope:
        """What was appended since a mark."""
        return merged((*mark.parts, *self.since(state, mark.prefix)))

    def read(self, step: int) -> None:
        """The body waits for this step."""
        self.reads.add(step)
        if self.hosts and step not in self.awaited:
            self.awaited = (*self.awaited, step)

    def step(self, step: Step, wave: int) -> int:
        if self.guard is not None:
            step = msgspec.structs.replace(step, when=self.guard)
        self.steps.append(step)
        self.step_waves.append(wave)
        return len(self.steps) - 1

    def concat(self, parts: Rope, at: str) -> Variable:
        if not parts:
            return Const("")
        if len(parts) == 1 and not isinstance(parts[0], (ImagePart, Either, Rounds)):
            part = parts[0]
            return Ref(part.step) if isinstance(part, Output) else part
        return Ref(self.step(Compute(op="concat", operands=parts, at=at), self.wave(parts)))

    # Arms that meet.

    def meet(self, cond: int, one: State, two: State) -> State:
        """The state that is one or the other."""
        start = self._common(one.prefix, two.prefix)
        then, orelse = self.since(one, start), self.since(two, start)
        pending: list[Part] = list(then) if then == orelse else [Either(cond, then, orelse)]
        if one.role != two.role:
            raise PlanError("the two ways of a condition end in different messages")
        if list(one.scopes) != list(two.scopes):
            raise PlanError("the two ways of a condition end in different scopes")
        met = dataclasses.replace(one, prefix=start, pending=pending)

        def mark(a: Mark, b: Mark) -> Mark:
            if a == b:
                return a
            return Mark(self.flush(met), (Either(cond, self.after(one, a), self.after(two, b)),))

        met.scopes = {n: mark(m, two.scopes[n]) for n, m in one.scopes.items()}
        if one.role is not None:
            met.opened = mark(one.opened, two.opened)
        messages = one.messages
        if one.messages != two.messages:
            self.conversation.append(PlanMessage(one.messages, "", (), cond, two.messages))
            messages = len(self.conversation) - 1
        return dataclasses.replace(
            met,
            variables=self._meet_variables(cond, one.variables, two.variables),
            messages=messages,
            history=self.meet_history(one.history, two.history),
            calls=list(dict.fromkeys((*one.calls, *two.calls))),
        )

    def _common(self, one: int, two: int) -> int:
        """The last prefix that both begin with."""
        while one != two:
            if one > two:
                one = self.prefixes[one][0]
            else:
                two = self.prefixes[two][0]
        return one

    def meet_history(self, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What later role markers need to know of the messages before."""
        if [m["role"] for m in one] == [m["role"] for m in two]:
            return one
        style = getattr(self.template, "style", None)
        if getattr(style, "name", "PLAIN") != "PLAIN" or (
            self.template.default_system_prompt and bool(one) != bool(two)
        ):
            raise PlanError(
                f"the two ways of a condition write different messages, on which the markers of the chat template "
                f"{self.template.name} depend"
            )
        return one or two

    def _meet_variables(
        self, cond: int, one: dict[str | None, Named], two: dict[str | None, Named]
    ) -> dict[str | None, Named]:
        found: dict[str | None, Named] = {}
        for name in {**one, **two}:
            a, b = one.get(name), two.get(name)
            if a == b and a is not None:
                found[name] = a
                continue
            values = (a.value if a else Absent(), b.value if b else Absent())
            steps = (a.step if a else -1, b.step if b else -1)
            pick = self.pick(cond, *values, steps)
            found[name] = Named(name, Ref(pick), pick if max(steps) >= 0 else -1)
        return found

    def pick(self, cond: int, then: Variable, orelse: Variable, steps: tuple[int, int] = (-1, -1)) -> int:
        wave = max(self.step_waves[n] for v in (Ref(cond), then, orelse) for n in refs(v))
        number = self.step(Pick(cond=cond, then=then, orelse=orelse, steps=steps), wave)
        if any(self.maybe_absent(v) for v in (then, orelse)):
            self.partial.add(number)
        return number

    def maybe_absent(self, value: Variable) -> bool:
        if isinstance(value, Gathered):
            return all(map(self.maybe_absent, value.items))
        return isinstance(value, Absent) or (isinstance(value, Ref) and value.step in self.partial)

    def append_messages(self, state: State, branch: State, at: Location | None) -> None:
        """The messages of a branch since its fork, behind those of the state. Raises PlanError if a condition or a loop
        decides what they are."""
        chain: list[PlanMessage] = []
        number = branch.messages
        while number != branch.said:
            message = self.conversation[number]
            if not message.role:
                raise PlanError("a branch is appended whose messages a condition or a loop decides", at)
            chain.append(message)
            number = message.parent
        for message in reversed(chain):
            self.conversation.append(PlanMessage(state.messages, message.role, message.content))
            state.messages = len(self.conversation) - 1
        if chain:
            state.history.extend(branch.history[branch.recalled :])

    def close(self, state: State) -> int:
        """The conversation with the open message as its last one."""
        assert state.role is not None
        content = self.after(state, state.opened)
        self.conversation.append(PlanMessage(state.messages, state.role, content))
        return len(self.conversation) - 1


def merged(parts: Sequence[Part]) -> Rope:
    """Neighbouring constant texts joined, empty ones dropped."""
    found: list[Part] = []
    run: list[str] = []
    for part in parts:
        if isinstance(part, Const) and isinstance(part.value, str):
            run.append(part.value)
            continue
        if text := "".join(run):
            found.append(Const(text))
        run = []
        found.append(part)
    if text := "".join(run):
        found.append(Const(text))
    return tuple(found)
