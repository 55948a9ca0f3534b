"""The `rt` dialect: a program lowered to model calls and pure computations, as data.

A Plan is a list of steps. A step's value is what the model wrote, what was chosen, or what was computed; later
steps refer to it by the step's number. Prompts are ropes: each Prefix continues another by some parts, so
that branches share what they share. A step may be guarded by a condition: then it happens only if that turns out so,
and `Either` and `Pick` are what one or the other arm has made. Steps may be the body of a `Repeat`: whoever runs the
plan takes them again for each round, under new numbers (`Shift`), and only `Last` and `Rounds` lead out of it. There is no code in a plan, and its calls and tokens
are bounded before it runs, so a server may admit it; only a `HostCall` is bound to the client, and `hosts` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from runtime.api import Constraint
from runtime.compute import OPERATIONS
from runtime.errors import InvalidRequest


class Const(msgspec.Struct, frozen=True, tag="const"):
    """A constant, of a rope or of a computation."""

    value: str | int | float | bool | None


class Argument(msgspec.Struct, frozen=True, tag="arg"):
    """An argument of the run."""

    name: str


class Ref(msgspec.Struct, frozen=True, tag="ref"):
    """The value of a step, as text or as operand."""

    step: int


class Output(msgspec.Struct, frozen=True, tag="out"):
    """What a step wrote into its state: the tokens as they were generated (of the first sample), or only their text."""

    step: int
    tokens: bool = True


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image at this place of a rope; `token` is what the chat template writes into the text for it."""

    data: bytes
    token: str = ""
    kind: str = "image"


class Either(msgspec.Struct, frozen=True, tag="either"):
    """One rope or the other, by the value of the step `cond`."""

    cond: int
    then: tuple[Part, ...]
    orelse: tuple[Part, ...]


class Rounds(msgspec.Struct, frozen=True, tag="rounds"):
    """What the rounds of a Repeat have appended to its state `state`: the first `count` of them, or all (-1).

    `tokens`: as they were generated, or only their text.
    """

    repeat: int
    state: int
    count: int = -1
    tokens: bool = True


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    """No value: a variable that one arm does not define."""


Part = Const | Argument | Ref | Output | ImagePart | Either | Rounds | Absent
Rope = tuple[Part, ...]
Guard = tuple[int, bool]  # the step of a condition, and how it must turn out


class Prefix(msgspec.Struct, frozen=True):
    """A prompt, or the beginning of some: that of `parent` (-1: nothing) and `parts` after it.

    `uses`: how many calls have prompts that begin with it.
    """

    parent: int
    parts: Rope
    uses: int = 0


class PlanMessage(msgspec.Struct, frozen=True):
    """One message of a conversation; those before it are reached by `parent` (-1: it is the first).

    Without a role it is no message, but a way: to `parent` or, if the value of the step `cond` is false, to `orelse`; with
    `repeat`, to where the last round of that step has led its state `state`.
    """

    parent: int
    role: str
    content: Rope
    cond: int = -1
    orelse: int = -1
    repeat: int = -1
    state: int = 0


class Decode(msgspec.Struct, frozen=True, tag="decode", kw_only=True):
    """Let the model continue a prefix.

    sampling  fields that the program gave; the run's defaults fill the others
    defaults  of a program that was called: its own, in the place of the run's
    messages  the conversation before this call, as the number of its last message (-1: none)
    role      of the message that is open, with `content` so far
    value     what the variable holds: the text, or with `n` the list of the samples
    """

    prefix: int
    name: str | None = None
    sampling: dict[str, Any] = {}
    defaults: dict[str, Any] | None = None
    constraint: Constraint | None = None
    dtype: str | None = None
    n: int | None = None
    messages: int = -1
    role: str | None = None
    content: Rope = ()
    wave: int = 0
    at: str = ""
    when: Guard | None = None


class Choose(msgspec.Struct, frozen=True, tag="choose", kw_only=True):
    """Score choices after a prefix, in one call, and take the best by `method`."""

    prefix: int
    choices: Rope
    name: str | None = None
    method: str = "token_length_normalized"
    messages: int = -1
    role: str | None = None
    content: Rope = ()
    wave: int = 0
    at: str = ""
    when: Guard | None = None


class Compute(msgspec.Struct, frozen=True, tag="compute", kw_only=True):
    """A pure operation (runtime/compute.py), or `pack`, whose `kind` and `keys` say what it makes."""

    op: str
    operands: Rope
    kind: str = ""
    keys: tuple[str, ...] = ()
    at: str = ""
    when: Guard | None = None


class Pick(msgspec.Struct, frozen=True, tag="pick", kw_only=True):
    """The value that one arm or the other has made; `steps` are the calls whose meta info it has (-1: none)."""

    cond: int
    then: Variable
    orelse: Variable
    steps: tuple[int, int] = (-1, -1)
    when: Guard | None = None


class HostCall(msgspec.Struct, frozen=True, tag="host", kw_only=True):
    """Call a function of the client, `module:qualified name`, after the steps in `after`, where they happen at all.

    A plan with such a step runs only where that function is; `result` is the type that it promises.
    """

    function: str
    args: Rope
    result: str = "any"
    after: tuple[int, ...] = ()
    at: str = ""
    when: Guard | None = None


class Enter(msgspec.Struct, frozen=True, tag="enter", kw_only=True):
    """A value with which a round begins; `step` is the call whose meta info it has (-1: none)."""

    value: Variable
    step: int = -1
    when: Guard | None = None


class Carried(msgspec.Struct, frozen=True):
    """A value that goes round: the step `enter` of the next round is `value` of this one."""

    enter: int
    value: Variable
    step: int = -1


class Carrier(msgspec.Struct, frozen=True):
    """A state that goes round: the prefix `head` of the next round is `end` of this one, which has appended `added`."""

    head: int
    end: int
    added: Rope
    head_message: int = -1
    end_message: int = -1


class Repeat(msgspec.Struct, frozen=True, tag="repeat", kw_only=True):
    """The steps after this one, up to `stop`, happen again as long as `again`, at least once and at most `maximum` times.

    Prefixes and messages from their first number up to the second belong to the body. When rounds run out it is an
    error, or with `bounded` the end. The last step of the body is the Turn that decides.
    """

    stop: int
    prefixes: tuple[int, int]
    messages: tuple[int, int]
    values: tuple[Carried, ...] = ()
    states: tuple[Carrier, ...] = ()
    maximum: int = 1
    bounded: bool = False
    at: str = ""
    when: Guard | None = None


class Turn(msgspec.Struct, frozen=True, tag="turn", kw_only=True):
    """The end of a round: whether there is another one, which begins after the steps in `after`."""

    repeat: int
    again: Part
    after: tuple[int, ...] = ()
    round: int = 1
    at: str = ""
    when: Guard | None = None


class Last(msgspec.Struct, frozen=True, tag="last", kw_only=True):
    """A carried value of a Repeat, by its index there, as the last round has left it."""

    repeat: int
    index: int
    when: Guard | None = None


class Prefill(msgspec.Struct, frozen=True, tag="prefill", kw_only=True):
    """Compute a prefix before it is needed: `uses` later calls begin with it. A hint, without a value."""

    prefix: int
    uses: int
    when: Guard | None = None


Step = Decode | Choose | Compute | HostCall | Pick | Enter | Repeat | Turn | Last | Prefill


class Gathered(msgspec.Struct, frozen=True, tag="list"):
    """A list of variables of branches, of those that have it; if none has, it is absent."""

    items: tuple[Variable, ...]


Variable = Const | Argument | Ref | Output | ImagePart | Either | Rounds | Absent | Gathered


def refs(value: Variable) -> Iterator[int]:
    """The steps that a part or a variable may refer to; of an `Either`, the condition first."""
    if isinstance(value, (Ref, Output)):
        yield value.step
    elif isinstance(value, Either):
        yield value.cond
        for part in (*value.then, *value.orelse):
            yield from refs(part)
    elif isinstance(value, Rounds):
        yield value.repeat
    elif isinstance(value, Gathered):
        for item in value.items:
            yield from refs(item)


class Named(msgspec.Struct, frozen=True):
    """A variable that the caller can read; `step` is the call whose meta info it has (-1: none)."""

    name: str | None
    value: Variable
    step: int = -1


class Bounds(msgspec.Struct, frozen=True):
    """What a run can cost at most: model calls, and new tokens (None: a call without a limit)."""

    calls: int
    tokens: int | None

    def plus(self, other: Bounds) -> Bounds:
        limited = self.tokens is not None and other.tokens is not None
        return Bounds(self.calls + other.calls, self.tokens + other.tokens if limited else None)  # type: ignore[operator]

    def or_else(self, other: Bounds) -> Bounds:
        limited = self.tokens is not None and other.tokens is not None
        return Bounds(max(self.calls, other.calls), max(self.tokens, other.tokens) if limited else None)  # type: ignore[type-var]

    def times(self, count: int) -> Bounds:
        return Bounds(self.calls * count, None if self.tokens is None else self.tokens * count)


def _tokens(step: Decode | Choose, max_tokens: int | None) -> int | None:
    if isinstance(step, Choose):
        return 0
    given = {**{"max_tokens": max_tokens}, **(step.defaults or {}), **step.sampling}["max_tokens"]
    return None if given is None else given * (step.n or 1)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A program, lowered.

    params    names of the run's arguments; all of them are strings
    text      the prefix that is the final text; `messages` the last message of the conversation
    result    what the body returned
    reads     steps whose values the body needs while it runs: if one fails, the body fails
    fatal     calls whose failure is the final state's failure
    template  name of the chat template whose text the role markers became
    """

    name: str
    params: tuple[str, ...]
    prefixes: tuple[Prefix, ...]
    conversation: tuple[PlanMessage, ...]
    steps: tuple[Step, ...]
    variables: tuple[Named, ...]
    text: int
    messages: int
    result: Variable
    reads: tuple[int, ...] = ()
    fatal: tuple[int, ...] = ()
    template: str = ""
    format: Literal["sglc-plan-1"] = "sglc-plan-1"

    def calls(self) -> Iterator[tuple[int, Decode | Choose]]:
        for number, step in enumerate(self.steps):
            if isinstance(step, (Decode, Choose)):
                yield number, step

    def hosts(self) -> list[str]:
        """Functions of the client that it calls; a server runs no plan that has any."""
        return list(dict.fromkeys(s.function for s in self.steps if isinstance(s, HostCall)))

    def bounds(self, max_tokens: int | None = 128) -> Bounds:
        """`max_tokens` is the run's default for calls that name none."""
        return self._bounds(0, len(self.steps), None, max_tokens)

    def _bounds(self, start: int, stop: int, outer: Guard | None, max_tokens: int | None) -> Bounds:
        """Of steps that lie in one body and are all guarded by `outer` or by conditions among them."""
        sums: dict[Guard | None, Bounds] = {}
        conds: dict[int, None] = {}
        number = start
        while number < stop:
            step = self.steps[number]
            if step.when is not None and step.when != outer:
                conds[step.when[0]] = None
            found = Bounds(0, 0)
            if isinstance(step, (Decode, Choose)):
                found = Bounds(1, _tokens(step, max_tokens))
            elif isinstance(step, Repeat):
                found = self._bounds(number + 1, step.stop, step.when, max_tokens).times(step.maximum)
                number = step.stop - 1
            sums[step.when] = sums.get(step.when, Bounds(0, 0)).plus(found)
            number += 1
        nothing = Bounds(0, 0)
        for cond in sorted(conds, reverse=True):  # what a condition guards comes after it
            worse = sums.get((cond, True), nothing).or_else(sums.get((cond, False), nothing))
            owner = self.steps[cond].when
            sums[owner] = sums.get(owner, nothing).plus(worse)
        return sums.get(outer, nothing)

    def verify(self) -> None:
        """Raise InvalidRequest if the plan refers to what is not there, or not there yet."""
        _Check(self).run()


class _Check:
    """Every reference leads to an earlier step, an argument, or an earlier prefix."""

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
