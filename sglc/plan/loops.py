"""A loop in a plan: its body once, and what goes round.

States that go round get a prefix for their beginning of a round and one for the end; values, and variables that the body
may change, an `Enter` at the beginning and a `Last` after the loop.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from runtime.plan import (
    Absent,
    Carried,
    Carrier,
    Enter,
    Last,
    Named,
    PlanMessage,
    Ref,
    Repeat,
    Rounds,
    Turn,
    Variable,
    refs,
)
from sglc.errors import PlanError
from sglc.ir.core import Operand, Value, walk
from sglc.ir.ops import (
    Gen,
    Join,
    Loop,
    Reuse,
    ScopeEnd,
    Select,
    SetVar,
)
from sglc.plan.ropes import State

if TYPE_CHECKING:
    from sglc.plan.lower import Walk


@dataclass
class _Goes:
    """A state that goes round: as it was before, at the beginning of a round, and at its end."""

    before: State
    head: State
    message: int
    enters: dict[str | None, int]


class LoopLowering:
    """A loop: its body once, and what goes round."""

    def __init__(self, walk: Walk, node: Loop, at: str) -> None:
        self.walk = walk
        self.to = walk.to
        self.loop = node
        self.at = at
        self.number = -1
        self.values: list[Carried] = []
        self.outs: list[tuple[bool, int]] = []  # of each carried value: may it be absent, its wave

    def lower(self) -> None:
        to, node = self.to, self.loop
        pairs = list(zip(node.body.params, node.inits, strict=True))
        states = [(p, v) for p, v in pairs if p.type == "state" and isinstance(v, Value)]
        held = {v: self.walk.states[v] for v in node.captures if v.type == "state"}
        for state in (*held.values(), *(self.walk.states[v] for _, v in states)):
            to.flush(state)
        empty = Repeat(stop=0, prefixes=(0, 0), messages=(0, 0))
        self.number = to.step(empty, to.floor)
        low, first = len(to.prefixes), len(to.conversation)
        body = self.walk.inside()
        body.states.update({v: s.in_arm() for v, s in held.items()})
        names = _names_in(node)
        going = {p: self._head(k, self.walk.states.pop(v), names) for k, (p, v) in enumerate(states)}
        body.states.update({p: g.head.in_arm() for p, g in going.items()})
        enters = {}
        for param, init in pairs:
            if param.type != "state":
                enters[param] = self._enter(self.walk.yielded(init), -1)
                body.known[param] = Ref(enters[param])
        body.nodes(node.body.nodes)
        again, *results = node.body.results
        ends = dict(zip(node.body.params, results, strict=True))
        turn_on = body.packed(body.operand(again))
        carriers = [self._end(g, body.states[_value(ends[p])], k) for k, (p, g) in enumerate(going.items())]
        for param, entry in enters.items():
            self._carry(entry, body.yielded(ends[param]), -1)
        wave = max(to.step_waves[self.number :], default=to.floor)
        to.step(Turn(repeat=self.number, again=turn_on, after=to.awaited, at=self.at), wave)
        to.awaited = ()
        to.read(self.number)
        to.steps[self.number] = msgspec.structs.replace(
            empty,
            stop=len(to.steps),
            prefixes=(low, len(to.prefixes)),
            messages=(first, len(to.conversation)),
            values=tuple(self.values),
            states=tuple(c for c, _ in carriers),
            maximum=node.maximum,
            bounded=node.bounded,
            at=self.at,
            when=to.guard,
        )
        to.step_waves[self.number] = wave
        left = iter(zip(carriers, going.values(), strict=True))
        for param, out in zip(node.body.params, node.outs, strict=True):
            if param.type == "state":
                (carrier, end), goes = next(left)
                self.walk.states[out] = self._after(carrier, goes, end, wave)
            else:
                self.walk.known[out] = self._last(enters[param], wave)

    def _head(self, number: int, before: State, names: frozenset[str | None]) -> _Goes:
        """The state with which a round begins."""
        to = self.to
        prefix = to.prefix(before.prefix, (Rounds(self.number, number, 0),), to.waves[before.prefix])
        to.conversation.append(PlanMessage(before.messages, "", ()))
        message = len(to.conversation) - 1
        head = dataclasses.replace(before.in_arm(), prefix=prefix, messages=message)
        enters: dict[str | None, int] = {}
        for name, named in before.variables.items():
            if name in names:
                enters[name] = number = self._enter(named.value, named.step)
                head.variables[name] = Named(name, Ref(number), number if named.step >= 0 else -1)
        return _Goes(before, head, message, enters)

    def _end(self, goes: _Goes, end: State, number: int) -> tuple[Carrier, State]:
        """What a round has made of a state."""
        to, head = self.to, goes.head
        to.flush(end)
        if end.role != head.role or (end.role is not None and end.opened != head.opened):
            raise PlanError(f"a round of a loop ends in another message than it began in ({self.at})")
        if end.scopes != head.scopes:
            raise PlanError(f"a round of a loop ends in another scope than it began in ({self.at})")
        to.meet_history(head.history, end.history)
        for name, entry in goes.enters.items():
            now = end.variables[name]
            self._carry(entry, now.value, now.step)
        for name, named in end.variables.items():
            if name not in head.variables:
                if any(isinstance(n, Join) for n in walk(self.loop.body.nodes)):
                    raise PlanError(f"the variable {name!r} is joined in a loop that defines it ({self.at})")
                goes.enters[name] = entry = self._enter(Absent(), -1)
                self._carry(entry, named.value, named.step)
        added = to.since(end, head.prefix)
        return Carrier(head.prefix, end.prefix, added, goes.message, end.messages), end

    def _after(self, carrier: Carrier, goes: _Goes, end: State, wave: int) -> State:
        """The state after the loop."""
        to, before = self.to, goes.before
        number = next(k for k, s in enumerate(self._repeat().states) if s is carrier)
        prefix = to.prefix(before.prefix, (Rounds(self.number, number),), wave)
        messages = before.messages
        if end.messages != goes.message:
            to.conversation.append(PlanMessage(before.messages, "", (), repeat=self.number, state=number))
            messages = len(to.conversation) - 1
        variables = dict(before.variables)
        for name, entry in goes.enters.items():
            value = self._last(entry, wave)
            wrote = next(v.step for v in self.values if v.enter == entry) >= 0
            variables[name] = Named(name, value, value.step if wrote else -1)
        return dataclasses.replace(
            before,
            prefix=prefix,
            pending=[],
            variables=variables,
            messages=messages,
            history=end.history,
            calls=list(dict.fromkeys((*before.calls, *end.calls))),
        )

    def _repeat(self) -> Repeat:
        found = self.to.steps[self.number]
        assert isinstance(found, Repeat)
        return found

    def _enter(self, value: Variable, step: int) -> int:
        to = self.to
        wave = max((to.step_waves[n] for n in refs(value)), default=to.floor)
        number = to.step(Enter(value=value, step=step), wave)
        if to.maybe_absent(value):
            to.partial.add(number)
        return number

    def _carry(self, enter: int, value: Variable, step: int) -> None:
        self.values.append(Carried(enter, value, step))

    def _last(self, enter: int, wave: int) -> Ref:
        """The value that goes round, after the loop."""
        index, carried = next((k, v) for k, v in enumerate(self._repeat().values) if v.enter == enter)
        number = self.to.step(Last(repeat=self.number, index=index), wave)
        if self.to.maybe_absent(carried.value):
            self.to.partial.add(number)
        return Ref(number)


def _value(operand: Operand) -> Value:
    assert isinstance(operand, Value), "a state is a value"
    return operand


def _names_in(loop: Loop) -> frozenset[str | None]:
    """Variables that the body may give a value."""
    found: set[str | None] = set()
    for node in walk(loop.body.nodes):
        if isinstance(node, (Gen, Select, Reuse, SetVar, ScopeEnd)):
            found.add(node.name)
    return frozenset(found)
