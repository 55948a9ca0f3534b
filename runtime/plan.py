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
