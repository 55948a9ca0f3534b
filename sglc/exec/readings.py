"""What is known of a run at any moment: values, texts, segments, messages, through conditions and rounds of loops.

Nothing here starts or waits for anything; exec/executor.py lets it grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.api import Delta, ImageSegment, Prompt, TextSegment
from runtime.engine.native import meta_info
from runtime.plan import (
    Absent,
    Argument,
    Const,
    Either,
    Enter,
    Gathered,
    ImagePart,
    Last,
    Output,
    Part,
    Pick,
    PlanMessage,
    Ref,
    Repeat,
    Rope,
    Rounds,
    Step,
    Variable,
)
from sglc.errors import RunError
from sglc.exec.conversation import content_of
from sglc.exec.rounds import Shift
from sglc.exec.schedule import Schedule

MISSING: Any = object()
ABSENT: Any = object()  # the value of a variable that the path taken does not define


@dataclass
class Answer:
    """What a call has given so far. `chunks` are those of the first sample."""

    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    chunks: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)
    segments: Prompt = ()
    text: str = ""
    meta: dict[str, Any] | Delta | None = None  # a Delta becomes meta info when it is asked for
    over: bool = False


class Readings:
    """The growing part of one run of a plan. `values`, `answers` and `errors` only grow; any thread may read."""

    def __init__(self, schedule: Schedule, arguments: Mapping[str, str]) -> None:
        self.schedule = schedule
        self.plan = schedule.plan
        self.arguments = arguments
        self.values: list[Any] = [MISSING] * len(self.plan.steps)
        self.answers: dict[int, Answer] = {}
        self.errors: dict[int, RunError] = {}  # by step: its own error, or that of what it needs
        # What the rounds of loops add to the plan; until then, the plan's own.
        self.steps: Sequence[Step] = self.plan.steps
        self.prefixes: Sequence[Any] = self.plan.prefixes
        self.conversation: Sequence[PlanMessage] = self.plan.conversation
        self._rounds: dict[int, list[Shift]] = {}

    # -- conditions and loops ---------------------------------------------------------------------------------

    def rounds(self, repeat: int) -> list[Shift]:
        """The rounds of a loop that have begun."""
        found = self._rounds.get(repeat)
        if found is None:  # asked for by readers in other threads too
            step = self.steps[repeat]
            assert isinstance(step, Repeat)
            found = self._rounds.setdefault(repeat, [Shift(repeat, step)])
        return found

    def inside(self, part: Either | Rounds) -> Rope:
        """What stands there, now that the condition is known, or the rounds."""
        if isinstance(part, Either):
            return part.then if self.values[part.cond] else part.orelse
        rounds = self.rounds(part.repeat)
        return tuple(
            p for shift in rounds[: part.count if part.count >= 0 else None] for p in self.added(shift, part)
        )

    def added(self, shift: Shift, part: Rounds) -> Rope:
        """What one round has appended to a state."""
        return shift.rope(shift.repeat.states[part.state].added)

    def taken(self, step: Pick | Enter | Last) -> Variable:
        """The value that it passes on; the condition is known, or the loop has ended."""
        if isinstance(step, Pick):
            return step.then if self.values[step.cond] else step.orelse
        if isinstance(step, Enter):
            return step.value
        last = self.rounds(step.repeat)[-1]
        return last.variable(last.repeat.values[step.index].value)

    def waits_for(self, part: Variable) -> list[int]:
        """The steps that a part needs, as far as its conditions are known."""
        if isinstance(part, (Ref, Output)):
            return [part.step]
        if isinstance(part, Gathered):
            return [n for item in part.items for n in self.waits_for(item)]
        if isinstance(part, Either) and self.values[part.cond] is MISSING:
            return [part.cond]
        if isinstance(part, Rounds) and part.count < 0 and self.values[part.repeat] is MISSING:
            return [part.repeat]
        if isinstance(part, (Either, Rounds)):
            return [n for p in self.inside(part) for n in self.waits_for(p)]
        return []

    # -- values -----------------------------------------------------------------------------------------------

    def meta_of(self, number: int) -> dict[str, Any] | None:
        """Meta info of what a call has written that has ended."""
        call = self.call_of(number)
        if call is None or call < 0:
            return None
        answer = self.answers[call]
        if isinstance(answer.meta, Delta):
            answer.meta = meta_info(answer.meta, answer.meta.id)
        return answer.meta

    def call_of(self, number: int) -> int | None:
        """The call that wrote the value of a step (-1: none); None as long as a condition or a loop must decide it."""
        while number >= 0:
            step = self.steps[number]
            if isinstance(step, Enter):
                number = step.step
            elif isinstance(step, Pick):
                if self.values[step.cond] is MISSING:
                    return None
                number = step.steps[0 if self.values[step.cond] else 1]
            elif isinstance(step, Last):
                if self.values[step.repeat] is MISSING:
                    return None
                last = self.rounds(step.repeat)[-1]
                number = last.step(last.repeat.values[step.index].step)
            else:
                break
        return number

    def segments_of(self, part: Part) -> Prompt:
        if isinstance(part, Output) and part.tokens:
            return self.answers[part.step].segments
        if isinstance(part, ImagePart):
            return (TextSegment(part.token), ImageSegment(part.data))
        if isinstance(part, Either) or (isinstance(part, Rounds) and part.tokens):
            return tuple(segment for p in self.inside(part) for segment in self.segments_of(p))
        return (TextSegment(self.text_of(part)),)

    def text_of(self, part: Part) -> str:
        if isinstance(part, Output):
            return self.answers[part.step].text
        if isinstance(part, ImagePart):
            return part.token
        if isinstance(part, (Either, Rounds)):
            return "".join(self.text_of(p) for p in self.inside(part))
        value = self.value_of(part)
        if not isinstance(value, str):
            raise RunError(f"a {type(value).__name__} is appended, which is not text: {value!r}")
        return value

    def value_of(self, part: Variable) -> Any:
        """The value of an operand or a variable; MISSING if it is not there yet."""
        if isinstance(part, Const):
            return part.value
        if isinstance(part, Argument):
            return self.arguments[part.name]
        if isinstance(part, Ref):
            return self.values[part.step]
        if isinstance(part, Gathered):
            found = [self.value_of(item) for item in part.items]
            there = [v for v in found if v is not ABSENT]
            if any(v is MISSING for v in found):
                return MISSING
            return ABSENT if found and not there else there
        if isinstance(part, Output):
            return MISSING if self.values[part.step] is MISSING else self.answers[part.step].text
        if isinstance(part, (Either, Rounds)):
            missing = not self.is_open(part) or any(self.value_of(p) is MISSING for p in self.inside(part))
            return MISSING if missing else self.text_of(part)
        return ABSENT if isinstance(part, Absent) else part.token

    def error_of(self, part: Variable) -> RunError | None:
        """Why a variable will never have a value."""
        if isinstance(part, Gathered):
            return next((e for e in map(self.error_of, part.items) if e is not None), None)
        if isinstance(part, (Either, Rounds)):
            waits = part.cond if isinstance(part, Either) else part.repeat
            parts: Rope = self.inside(part) if self.is_open(part) else (Ref(waits),)
            return next((e for e in map(self.error_of, parts) if e is not None), None)
        return self.errors.get(part.step) if isinstance(part, (Ref, Output)) else None

    def is_open(self, part: Either | Rounds) -> bool:
        """Whether it is known what stands there."""
        if isinstance(part, Either):
            return self.values[part.cond] is not MISSING
        return part.count >= 0 or self.values[part.repeat] is not MISSING

    def _before_both(self, message: PlanMessage) -> int:
        """The last message that both ways of a conversation have."""
        one, two = message.parent, message.orelse
        while one != two:
            if one > two:
                one = self.conversation[one].parent
            else:
                two = self.conversation[two].parent
        return one

    def messages_to(self, last: int) -> list[dict[str, Any]]:
        """The conversation up to message `last`, as far as it is known."""
        chain: list[Any] = []
        while last >= 0:
            message = self.conversation[last]
            if not message.role:
                waits = message.cond if message.cond >= 0 else message.repeat
                if waits >= 0 and self.values[waits] is MISSING:
                    chain.clear()  # a failed run: only what all ways have in common is sure
                    last = self._before_both(message) if message.cond >= 0 else message.parent
                elif message.repeat >= 0:
                    end = self.rounds(message.repeat)[-1]
                    last = end.message(end.repeat.states[message.state].end_message)
                else:
                    last = message.orelse if waits >= 0 and not self.values[waits] else message.parent
                continue
            chain.append(message)
            last = message.parent
        found: list[dict[str, Any]] = []
        for message in reversed(chain):
            if any(self.value_of(p) is MISSING for p in message.content):
                break
            text = "".join(self.text_of(p) for p in message.content).lstrip()
            found.append({"role": message.role, "content": content_of(text, images_of(message.content))})
        return found


def images_of(content: Rope) -> list[bytes]:
    return [p.data for p in content if isinstance(p, ImagePart)]
