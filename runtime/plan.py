"""The `rt` dialect: a program lowered to model calls and pure computations, as data.

A Plan is a list of steps. A step's value is what the model wrote, what was chosen, or what was computed; later
steps refer to it by the step's number. Prompts are ropes: each Prefix continues another by some parts, so
that branches share what they share. There is no host code in a plan, and its calls and tokens are
bounded before it runs, so a server may admit it.
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


Part = Const | Argument | Ref | Output | ImagePart
Rope = tuple[Part, ...]


class Prefix(msgspec.Struct, frozen=True):
    """A prompt, or the beginning of some: that of `parent` (-1: nothing) and `parts` after it.

    `uses`: how many calls have prompts that begin with it.
    """

    parent: int
    parts: Rope
    uses: int = 0


class PlanMessage(msgspec.Struct, frozen=True):
    """One message of a conversation; those before it are reached by `parent` (-1: it is the first)."""

    parent: int
    role: str
    content: Rope


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


class Compute(msgspec.Struct, frozen=True, tag="compute", kw_only=True):
    """A pure operation (runtime/compute.py), or `pack`, whose `kind` and `keys` say what it makes."""

    op: str
    operands: Rope
    kind: str = ""
    keys: tuple[str, ...] = ()
    at: str = ""


class Prefill(msgspec.Struct, frozen=True, tag="prefill", kw_only=True):
    """Compute a prefix before it is needed: `uses` later calls begin with it. A hint, without a value."""

    prefix: int
    uses: int


Step = Decode | Choose | Compute | Prefill


class Gathered(msgspec.Struct, frozen=True, tag="list"):
    """A list of variables of branches."""

    items: tuple[Variable, ...]


Variable = Const | Argument | Ref | Output | ImagePart | Gathered


class Named(msgspec.Struct, frozen=True):
    """A variable that the caller can read; `step` is the call whose meta info it has (-1: none)."""

    name: str | None
    value: Variable
    step: int = -1


class Bounds(msgspec.Struct, frozen=True):
    """What a run can cost at most: model calls, and new tokens (None: a call without a limit)."""

    calls: int
    tokens: int | None


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

    def bounds(self, max_tokens: int | None = 128) -> Bounds:
        """`max_tokens` is the run's default for calls that name none."""
        calls, tokens = 0, 0
        limited = True
        for _, step in self.calls():
            calls += 1
            if isinstance(step, Decode):
                given = {**{"max_tokens": max_tokens}, **(step.defaults or {}), **step.sampling}["max_tokens"]
                if given is None:
                    limited = False
                else:
                    tokens += given * (step.n or 1)
        return Bounds(calls, tokens if limited else None)

    def verify(self) -> None:
        """Raise InvalidRequest if the plan refers to what is not there, or not there yet."""
        _Check(self).run()


class _Check:
    """Every reference leads to an earlier step, an argument, or an earlier prefix."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.latest: list[int] = []  # by prefix: the last step that its text needs

    def fail(self, problem: str) -> InvalidRequest:
        return InvalidRequest(f"the plan {self.plan.name!r} is not valid: {problem}", param="plan")

    def rope(self, parts: Rope, owner: str) -> int:
        last = -1
        for part in parts:
            if isinstance(part, Argument) and part.name not in self.plan.params:
                raise self.fail(f"{owner} needs the argument {part.name!r}, which the plan does not take")
            if isinstance(part, (Ref, Output)):
                if not 0 <= part.step < len(self.plan.steps):
                    raise self.fail(f"{owner} refers to step {part.step} of {len(self.plan.steps)}")
                if isinstance(self.plan.steps[part.step], Prefill):
                    raise self.fail(f"{owner} refers to step {part.step}, a prefill, which has no value")
                last = max(last, part.step)
        return last

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
        for number, step in enumerate(plan.steps):
            if self._needs(number, step) >= number:
                raise self.fail(f"step {number} needs a step that comes later")
        for item in plan.variables:
            self._variable(item.value)
        self._variable(plan.result)
        if not -1 <= plan.text < len(plan.prefixes) or not -1 <= plan.messages < len(plan.conversation):
            raise self.fail("its final text or conversation does not exist")

    def _needs(self, number: int, step: Step) -> int:
        owner = f"step {number}"
        if isinstance(step, Compute):
            if step.op not in OPERATIONS and step.op != "pack":
                raise self.fail(f"{owner} computes {step.op!r}, which does not exist")
            return self.rope(step.operands, owner)
        if not 0 <= step.prefix < len(self.plan.prefixes):
            raise self.fail(f"{owner} continues prefix {step.prefix} of {len(self.plan.prefixes)}")
        last = self.latest[step.prefix]
        if isinstance(step, (Decode, Choose)):
            if not -1 <= step.messages < len(self.plan.conversation):
                raise self.fail(f"{owner} has the conversation {step.messages}")
            last = max(last, self.rope(step.content, owner))
        if isinstance(step, Choose):
            last = max(last, self.rope(step.choices, owner))
        return last

    def _variable(self, value: Variable) -> None:
        if isinstance(value, Gathered):
            for item in value.items:
                self._variable(item)
        else:
            self.rope((value,), "a variable")
