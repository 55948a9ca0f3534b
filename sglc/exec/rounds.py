"""The body of a loop under new numbers: what each round after the first consists of.

The plan holds a body once. Its first round runs under the numbers that it has there; for another one, steps,
prefixes and messages of the body move as blocks behind all others, and what they refer to inside of the body moves with
them, while what lies outside stays. Loops in the body move the same way, as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from runtime.plan import (
    Carried,
    Carrier,
    Choose,
    Compute,
    Decode,
    Either,
    Enter,
    Gathered,
    HostCall,
    Last,
    Output,
    Part,
    Pick,
    PlanMessage,
    Prefix,
    Ref,
    Repeat,
    Rope,
    Rounds,
    Step,
    Turn,
    Variable,
)

_replace = msgspec.structs.replace


@dataclass(frozen=True)
class Shift:
    """One round of the Repeat with this number: how far its steps, prefixes and messages have moved."""

    number: int
    repeat: Repeat
    round: int = 1
    steps: int = 0
    prefixes: int = 0
    messages: int = 0

    def step(self, number: int) -> int:
        return number + self.steps if self.number < number < self.repeat.stop else number

    def prefix(self, number: int) -> int:
        low, high = self.repeat.prefixes
        return number + self.prefixes if low <= number < high else number

    def message(self, number: int) -> int:
        low, high = self.repeat.messages
        return number + self.messages if low <= number < high else number

    def rope(self, parts: Rope) -> Rope:
        return tuple(map(self.part, parts))

    def part(self, part: Part) -> Part:
        if isinstance(part, (Ref, Output)):
            number = self.step(part.step)
            return part if number == part.step else _replace(part, step=number)
        if isinstance(part, Either):
            return Either(self.step(part.cond), self.rope(part.then), self.rope(part.orelse))
        if isinstance(part, Rounds):
            if part.repeat == self.number and part.count >= 0:
                return _replace(part, count=self.round - 1)
            return _replace(part, repeat=self.step(part.repeat))
        return part

    def variable(self, value: Variable) -> Variable:
        if isinstance(value, Gathered):
            return Gathered(tuple(map(self.variable, value.items)))
        return self.part(value)

    def moved_prefix(self, prefix: Prefix) -> Prefix:
        return Prefix(self.prefix(prefix.parent), self.rope(prefix.parts), prefix.uses)

    def moved_message(self, message: PlanMessage) -> PlanMessage:
        return _replace(
            message,
            parent=self.message(message.parent),
            content=self.rope(message.content),
            cond=self.step(message.cond),
            orelse=self.message(message.orelse),
            repeat=self.step(message.repeat),
        )

    def moved_step(self, step: Step) -> Step:
        when = None if step.when is None else (self.step(step.when[0]), step.when[1])
        if isinstance(step, (Decode, Choose)):
            step = _replace(
                step,
                prefix=self.prefix(step.prefix),
                messages=self.message(step.messages),
                content=self.rope(step.content),
                when=when,
            )
            return _replace(step, choices=self.rope(step.choices)) if isinstance(step, Choose) else step
        if isinstance(step, Compute):
            return _replace(step, operands=self.rope(step.operands), when=when)
        if isinstance(step, HostCall):
            after = tuple(map(self.step, step.after))
            return _replace(step, args=self.rope(step.args), after=after, when=when)
        if isinstance(step, Pick):
            one, two = step.steps
            return Pick(
                cond=self.step(step.cond),
                then=self.variable(step.then),
                orelse=self.variable(step.orelse),
                steps=(self.step(one), self.step(two)),
                when=when,
            )
        if isinstance(step, Enter):
            return Enter(value=self.variable(step.value), step=self.step(step.step), when=when)
        if isinstance(step, Last):
            return Last(repeat=self.step(step.repeat), index=step.index, when=when)
        if isinstance(step, Turn):
            own = step.repeat == self.number
            return _replace(
                step,
                repeat=self.step(step.repeat),
                again=self.part(step.again),
                after=tuple(map(self.step, step.after)),
                round=self.round if own else step.round,
                when=when,
            )
        assert isinstance(step, Repeat), f"{type(step).__name__} in a loop"
        return self._moved_repeat(step, when)

    def _moved_repeat(self, step: Repeat, when: tuple[int, bool] | None) -> Repeat:
        (low, high), (first, last) = step.prefixes, step.messages
        return _replace(
            step,
            stop=self.step(step.stop),
            prefixes=(low + self.prefixes, high + self.prefixes),
            messages=(first + self.messages, last + self.messages),
            values=tuple(
                Carried(self.step(v.enter), self.variable(v.value), self.step(v.step)) for v in step.values
            ),
            states=tuple(self._moved_carrier(s) for s in step.states),
            when=when,
        )

    def _moved_carrier(self, state: Carrier) -> Carrier:
        return Carrier(
            self.prefix(state.head),
            self.prefix(state.end),
            self.rope(state.added),
            self.message(state.head_message),
            self.message(state.end_message),
        )
