"""States while a program is traced: each operation of the body becomes a node.

What cannot be known while tracing (whether a gen has ended, what the text is by now) raises GraphBreak; so a
traced state never tells the body anything that a run might contradict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sglc.ir.core import Value
from sglc.ir.ops import Fork, Gen, Image, Join, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, Select, SetVar, Text
from sglc.ir.specs import GenSpec, ImageSpec, Location, SelectSpec
from sglc.ir.types import type_of
from sglc.lang.choices import METHODS
from sglc.lang.values import Traced, TracedStr

if TYPE_CHECKING:
    from sglc.lang.trace import Trace


class UndefinedVariable(KeyError):
    """A variable is read that no gen on this path has defined; `known` are those that are."""

    def __init__(self, name: Any, known: list[Any]) -> None:
        super().__init__(name)
        self.name = name
        self.known = known


def type_of_shape(shape: Any) -> str:
    """The IR type of what user code holds: a traced value, a list of them, or a constant."""
    if isinstance(shape, Traced):
        return shape.value.type if isinstance(shape.value, Value) else type_of(shape.value)
    if isinstance(shape, list) and shape and all(type_of_shape(v) == "str" for v in shape):
        return "list<str>"
    return type_of(shape)


class CallSink:
    """The finished state of a program that was called: its variables and text can be read."""

    def __init__(self, trace: Trace, env: dict[Any, Any], text: Traced) -> None:
        self.trace = trace
        self.env = env
        self._text = text

    def read(self, name: Any, at: Location | None = None) -> Any:
        return self.env[name]

    def has(self, name: Any) -> bool:
        return name in self.env

    def full_text(self) -> Any:
        return self._text

    def sync(self) -> None:
        """A call is over when it returns."""

    finish = sync

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.trace.stop(f"{name} of the state of a program that was called")


class TraceSink:
    """One state while it is traced. `env` maps variables to what user code reads; `settled` are those that need no wait."""

    def __init__(self, trace: Trace, state: Value, parent: TraceSink | None = None) -> None:
        self.trace = trace
        self.state = state
        self.parent = parent
        self.env: dict[Any, Any] = dict(parent.env) if parent else {}
        self.settled: set[Any] = set(parent.settled) if parent else set()
        self.role: str | None = parent.role if parent else None
        self.scopes: list[str] = list(parent.scopes) if parent else []
        self.over = False
        self.last: Value | None = None  # what the model wrote last
        self.joined: list[Value] = list(parent.joined) if parent else []
        self.own: set[Any] = set()  # names defined since the fork
        self.number = len(trace.sinks)
        trace.sinks.append(self)

    def end(self) -> Value:
        self.over = True
        return self.state

    def _append(self, op: Any, at: Location | None, *operands: Any, **attrs: Any) -> None:
        if self.over:
            self.trace.stop("a state that was joined or has ended is appended to", at, "ended-state")
        self.state = self.trace.emit_state(op, at, self.state, *operands, **attrs)

    def _define(self, name: Any, value: Any) -> None:
        self.env[name] = value
        self.own.add(name)
        self.settled.discard(name)

    def text(self, value: Any, at: Location | None) -> None:
        if not isinstance(value, (str, TracedStr)) and not (
            isinstance(value, Traced) and type_of_shape(value) == "any"
        ):
            self.trace.stop(f"a {type_of_shape(value)} is appended, which is not text", at, "not-text")
        self._append(Text, at, (self.trace.operand(value, "the text", at),))

    def image(self, spec: ImageSpec, at: Location | None) -> None:
        if spec.meta:
            self.trace.stop(f"an image with {', '.join(spec.meta)} is appended", at)
        self._append(Image, at, spec.data, spec.kind)

    def gen(self, spec: GenSpec, at: Location | None) -> None:
        self._check_name(spec.name, at)
        if self.over:
            self.trace.stop("a state that was joined or has ended is appended to", at, "ended-state")
        if spec.reasoning is not None:
            self._separated(spec, at)
            return
        out = self.trace.names.fresh("state")
        text = self.trace.names.fresh("str" if spec.n is None else "list<str>")
        symbol = self.trace.tracing.symbol(spec.constraint)
        self.trace.nodes.append(
            Gen(out, text, self.state, spec.name, spec.sampling, symbol, spec.dtype, spec.n, at=at)
        )
        self.state, self.last = out, text
        label = f's["{spec.name}"]'
        value: Any = self.trace.wrap(text, label, None)
        if spec.n is not None:
            value = [self.trace.compute("item", value, k) for k in range(spec.n)]
            self.trace.samples.update((v.value, text) for v in value)
        self._define(spec.name, value)

    def _separated(self, spec: GenSpec, at: Location | None) -> None:
        """The model writes in a branch, of which only the answer comes back."""
        aside = self.trace.names.fresh("state")
        self.trace.nodes.append(Fork((aside,), self.state, at=at))
        branch = TraceSink(self.trace, aside, self)
        branch.gen(replace(spec, reasoning=None), at)
        parts = self.trace.compute("reasoning", branch.env[spec.name], spec.reasoning)
        thoughts, answer = (self.trace.compute("item", parts, k) for k in (0, 1))
        self.text(answer, at)
        for name, value in ((spec.thoughts, thoughts), (spec.name, answer)):
            self._append(SetVar, at, value.value, name)
            self._define(name, value)

    def select(self, spec: SelectSpec, at: Location | None) -> None:
        self._check_name(spec.name, at)
        method = next((n for n, m in METHODS.items() if m is spec.method or n == spec.method), None)
        if method is None:
            self.trace.stop("a choices method of the user's own decides, which is Python", at)
        if self.over:
            self.trace.stop("a state that was joined or has ended is appended to", at, "ended-state")
        choices = tuple(self.trace.operand(c, "a choice", at) for c in spec.choices)
        out = self.trace.names.fresh("state")
        text = self.trace.names.fresh("str")
        self.trace.nodes.append(Select(out, text, self.state, choices, spec.name, method, at=at))
        self.state, self.last = out, text
        if all(isinstance(c, str) for c in choices):
            self.trace.paths.domain(text, choices)
        self._define(spec.name, self.trace.wrap(text, f's["{spec.name}"]', None))

    def _check_name(self, name: Any, at: Location | None) -> None:
        if name is not None and type(name) is not str:
            self.trace.stop(f"the name of a variable is {name!r}, which is not a string", at)

    def role_begin(self, role: str, at: Location | None) -> None:
        if self.role is not None:
            self.trace.stop(f"a {role} message begins inside a {self.role} message", at, "nested-role")
        self.role = role
        self._append(RoleBegin, at, role)

    def role_end(self, role: str, at: Location | None) -> None:
        if self.role != role:
            self.trace.stop(f"a {role} message ends that did not begin", at, "role-not-open")
        self.role = None
        self._append(RoleEnd, at, role)

    def scope_begin(self, name: str, at: Location | None) -> None:
        self._check_name(name, at)
        if name in self.scopes:
            self.trace.stop(f"the scope {name!r} is open already", at, "nested-scope")
        self.scopes.append(name)
        self._append(ScopeBegin, at, name)

    def scope_end(self, name: str, at: Location | None) -> None:
        if name not in self.scopes:
            self.trace.stop(f"the scope {name!r} ends that did not begin", at, "nested-scope")
        self.scopes.remove(name)
        out = self.trace.names.fresh("state")
        text = self.trace.names.fresh("str")
        self.trace.nodes.append(ScopeEnd(out, text, self.state, name, at=at))
        self.state = out
        self._define(name, self.trace.wrap(text, f's["{name}"]', None))

    def fork(self, size: int, at: Location | None) -> Sequence[Any]:
        if self.over:
            self.trace.stop("a state that was joined or has ended is forked", at, "ended-state")
        if self.scopes:
            self.trace.stop(f"a fork inside the scope {self.scopes[-1]!r}", at)
        outs = tuple(self.trace.names.fresh("state") for _ in range(size))
        if outs:
            self.trace.nodes.append(Fork(outs, self.state, at=at))
        return [TraceSink(self.trace, out, self) for out in outs]

    def join(self, children: Sequence[Any], mode: str, at: Location | None) -> None:
        for child in children:
            if child.parent is not self or child.over:
                self.trace.stop(
                    "a branch is joined that is not an open branch of this state", at, "ended-state"
                )
        for child in children:
            self.joined.extend(child.joined)
            if child.last is not None:
                self.joined.append(child.last)
        before = set(self.env)
        gathered: dict[Any, list[Any]] = {}
        if mode == "gather_variable":
            for child in children:
                for name in child.own:
                    self.trace.paths.consult(self, name)
                for name, value in child.env.items():
                    if name not in before:
                        gathered.setdefault(name, []).append(value)
        self._append(Join, at, tuple(child.end() for child in children), mode)
        for name, values in gathered.items():
            self._define(name, values)
            self.settled.add(name)

    def read(self, name: Any, at: Location | None) -> Any:
        if isinstance(name, Traced):
            name.stop("the name of a variable", "Read the variable by a fixed name")
        if name in self.scopes:
            self.trace.stop(f"the scope {name!r} is read while it is open", at, "nested-scope")
        self.trace.paths.consult(self, name)
        if name not in self.env:
            raise UndefinedVariable(name, list(self.env))
        value = self.env[name]
        self.trace.note_read(value, at)
        for written in self.joined:  # a branch that failed fails the state that it was joined to
            self.trace.reads.setdefault(written, at)
        self.joined.clear()
        return list(value) if isinstance(value, list) else value

    def has(self, name: Any) -> bool:
        if name in self.scopes or (name in self.env and name not in self.settled):
            self.trace.stop(f"`in` asks whether {name!r} is there yet, which depends on time")
        self.trace.paths.consult(self, name)
        return name in self.env

    def assign(self, name: Any, value: Any) -> None:
        self._check_name(name, None)
        at = self.trace.where()
        self._append(SetVar, at, self.trace.operand(value, f"the value of {name!r}", at), name)
        self.env[name] = value
        self.own.add(name)
        self.settled.add(name)

    def sync(self) -> None:
        """Nothing runs while a program is traced."""

    finish = sync

    def meta(self, name: Any, timeout: float | None = None) -> dict[str, Any] | None:
        self.trace.stop("get_meta_info() tells what happened in a run")

    def full_text(self) -> str:
        self.trace.stop("text() is read while the program is still writing it")

    def messages(self) -> list[dict[str, Any]]:
        self.trace.stop("messages() is read while the program is still writing them")

    def error(self) -> BaseException | None:
        self.trace.stop("error() tells what happened in a run")

    def chunks(self, name: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        self.trace.stop("a stream of chunks is read")
