"""Every reference in a Plan leads to an earlier step, an argument, or an earlier prefix; loops lie one inside the other."""

from __future__ import annotations

from runtime.compute import OPERATIONS
from runtime.errors import InvalidRequest
from runtime.plan import (
    Argument,
    Choose,
    Compute,
    Decode,
    Enter,
    Gathered,
    HostCall,
    Last,
    Pick,
    Plan,
    Prefill,
    Repeat,
    Rope,
    Rounds,
    Step,
    Turn,
    Variable,
    refs,
)


def verify(plan: Plan) -> None:
    """Raise InvalidRequest if the plan refers to what is not there, or not there yet."""
    _Check(plan).run()


class _Check:
    """One walk over a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.latest: list[int] = []  # by prefix: the last step that its text needs
        self.inside = self.owners()  # by step: the Repeat in whose body it lies, or -1

    def fail(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"the plan {self.plan.name!r} is not valid: {problem}", param="plan")

    def owners(self) -> list[int]:
        """Raises InvalidRequest if bodies do not lie one inside the other."""
        found: list[int] = []
        open_: list[int] = []
        for number, step in enumerate(self.plan.steps):
            while open_ and number >= self.stop(open_[-1]):
                open_.pop()
            found.append(open_[-1] if open_ else -1)
            if isinstance(step, Repeat):
                limit = self.stop(open_[-1]) if open_ else len(self.plan.steps)
                if not number + 1 < step.stop <= limit:
                    raise self.fail(f"step {number} repeats up to step {step.stop} of {limit}")
                last = self.plan.steps[step.stop - 1]
                if not isinstance(last, Turn) or last.repeat != number:
                    raise self.fail(
                        f"step {number} repeats, but step {step.stop - 1} does not end a round of it"
                    )
                if step.maximum < 1:
                    raise self.fail(f"step {number} repeats at most {step.maximum} times")
                open_.append(number)
        return found

    def sees(self, number: int, other: int) -> bool:
        """Whether step `other` lies in no body, or in one in which `number` lies too."""
        owner = self.inside[other]
        while number >= 0 and self.inside[number] != owner:
            number = self.inside[number]
        return number >= 0

    def stop(self, repeat: int) -> int:
        step = self.plan.steps[repeat]
        assert isinstance(step, Repeat)
        return step.stop

    def rope(self, parts: Rope, owner: str) -> int:
        last = -1
        for part in parts:
            if isinstance(part, Argument) and part.name not in self.plan.params:
                raise self.fail(f"{owner} needs the argument {part.name!r}, which the plan does not take")
            for step in refs(part):
                last = max(last, self.value_of(step, owner))
            if isinstance(part, Rounds):
                self.carries(part.repeat, owner, state=part.state)
        return last

    def value_of(self, step: int, owner: str) -> int:
        if not 0 <= step < len(self.plan.steps):
            raise self.fail(f"{owner} refers to step {step} of {len(self.plan.steps)}")
        if isinstance(self.plan.steps[step], Prefill):
            raise self.fail(f"{owner} refers to step {step}, a prefill, which has no value")
        return step

    def carries(self, repeat: int, owner: str, *, value: int = -1, state: int = -1) -> int:
        """The step after which what a Repeat hands on is known."""
        found = self.plan.steps[self.value_of(repeat, owner)]
        if not isinstance(found, Repeat):
            raise self.fail(f"{owner} asks step {repeat} for its rounds, which does not repeat")
        if not value < len(found.values) or not state < len(found.states):
            raise self.fail(f"{owner} asks step {repeat} for what it does not carry")
        return repeat

    def run(self) -> None:
        plan = self.plan
        for number, prefix in enumerate(plan.prefixes):
            if not -1 <= prefix.parent < number:
                raise self.fail(f"prefix {number} continues prefix {prefix.parent}")
            before = self.latest[prefix.parent] if prefix.parent >= 0 else -1
            self.latest.append(max(before, self.rope(prefix.parts, f"prefix {number}")))
        for number, message in enumerate(plan.conversation):
            if not -1 <= message.parent < number:
                raise self.fail(f"message {number} follows message {message.parent}")
            self.rope(message.content, f"message {number}")
            if message.repeat >= 0:
                self.carries(message.repeat, f"message {number}", state=message.state)
            if message.cond >= 0:
                self.value_of(message.cond, f"message {number}")
                if not -1 <= message.orelse < number:
                    raise self.fail(f"message {number} follows message {message.orelse}")
        for number, step in enumerate(plan.steps):
            if self._needs(number, step) >= number:
                raise self.fail(f"step {number} needs a step that comes later")
            if step.when is not None and not self.sees(number, step.when[0]):
                raise self.fail(f"step {number} is guarded by step {step.when[0]}, which lies in a loop")
        for item in plan.variables:
            self._variable(item.value)
        self._variable(plan.result)
        if not -1 <= plan.text < len(plan.prefixes) or not -1 <= plan.messages < len(plan.conversation):
            raise self.fail("its final text or conversation does not exist")

    def _needs(self, number: int, step: Step) -> int:
        owner = f"step {number}"
        guard = self.value_of(step.when[0], owner) if step.when is not None else -1
        if isinstance(step, Compute):
            if step.op not in OPERATIONS and step.op != "pack":
                raise self.fail(f"{owner} computes {step.op!r}, which does not exist")
            return max(guard, self.rope(step.operands, owner))
        if isinstance(step, Pick):
            arms = (self.value_of(n, owner) for v in (step.then, step.orelse) for n in refs(v))
            return max(guard, self.value_of(step.cond, owner), *arms)
        if isinstance(step, HostCall):
            return max(guard, self.rope(step.args, owner), *(self.value_of(n, owner) for n in step.after))
        if isinstance(step, Enter):
            return max((self.value_of(n, owner) for n in refs(step.value)), default=guard)
        if isinstance(step, Repeat):
            return max(guard, self._repeat(step, owner))
        if isinstance(step, Turn):
            after = (self.value_of(n, owner) for n in step.after)
            return max(guard, self.rope((step.again,), owner), self.carries(step.repeat, owner), *after)
        if isinstance(step, Last):
            return max(guard, self.carries(step.repeat, owner, value=step.index))
        if not 0 <= step.prefix < len(self.plan.prefixes):
            raise self.fail(f"{owner} continues prefix {step.prefix} of {len(self.plan.prefixes)}")
        last = max(guard, self.latest[step.prefix])
        if isinstance(step, (Decode, Choose)):
            if not -1 <= step.messages < len(self.plan.conversation):
                raise self.fail(f"{owner} has the conversation {step.messages}")
            last = max(last, self.rope(step.content, owner))
        if isinstance(step, Choose):
            last = max(last, self.rope(step.choices, owner))
        return last

    def _repeat(self, step: Repeat, owner: str) -> int:
        """What goes round is made in the body and enters there."""
        (low, high), (first, last) = step.prefixes, step.messages
        if not 0 <= low <= high <= len(self.plan.prefixes) or not 0 <= first <= last <= len(
            self.plan.conversation
        ):
            raise self.fail(f"{owner} has prefixes or messages that do not exist")
        for value in step.values:
            if not isinstance(self.plan.steps[self.value_of(value.enter, owner)], Enter):
                raise self.fail(f"{owner} carries a value into step {value.enter}, which is not an entry")
            self._variable(value.value)
        for state in step.states:
            if not (low <= state.head < high and low <= state.end < high):
                raise self.fail(f"{owner} carries a state that is not of its body")
            self.rope(state.added, owner)
        return -1

    def _variable(self, value: Variable) -> None:
        if isinstance(value, Gathered):
            for item in value.items:
                self._variable(item)
        else:
            self.rope((value,), "a variable")
