"""Walk a Plan against a backend: a call starts as soon as what it needs is known.

Prefixes and steps form one graph of dependencies; each completion releases what waited for it. Waves are not
barriers here. A guarded step waits for its condition and never happens if that turns out otherwise; what an `Either` or
`Pick` needs is known once its condition is. Calls that become ready in the same turn leave in one request (exec/session.py), those of
all rows of a batch included. Everything runs on the event loop's thread; readers in other threads wait
on `changed`. When a call fails, what depends on it never starts.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime.api import (
    Delta,
    ImageSegment,
    Message,
    Prompt,
    Result,
    Score,
    ScoreResult,
    Segment,
    TextSegment,
    collect,
    merge_text,
)
from runtime.compute import ComputeError, compute, pack
from runtime.engine.native import meta_info
from runtime.plan import (
    Absent,
    Argument,
    Choose,
    Compute,
    Const,
    Decode,
    Either,
    Gathered,
    ImagePart,
    Output,
    Part,
    Pick,
    Plan,
    PlanMessage,
    Prefill,
    Ref,
    Rope,
    Variable,
    refs,
)
from sglc.errors import RunError
from sglc.exec.session import Session
from sglc.ir.specs import RUN_DEFAULTS, GenSpec, Location, SamplingFields

log = logging.getLogger("sglc")

MISSING: Any = object()
ABSENT: Any = object()  # the value of a variable that the path taken does not define
Decide = Callable[[Any, tuple[str, ...], ScoreResult], Any]


@dataclass(frozen=True)
class Schedule:
    """What every run of a plan shares. Prefixes are numbered first, then steps."""

    plan: Plan
    needs: tuple[int, ...]  # how many others each one waits for
    releases: tuple[tuple[int, ...], ...]
    specs: Mapping[int, GenSpec]
    guarded: Mapping[
        int, tuple[tuple[int, bool], ...]
    ]  # by condition: steps, and how it must turn out for them
    late: frozenset[int]  # those whose needs depend on a condition

    @classmethod
    def of(cls, plan: Plan) -> Schedule:
        base = len(plan.prefixes)
        sources: list[set[int]] = []
        guarded: dict[int, list[tuple[int, bool]]] = {}
        late: set[int] = set()

        def steps(parts: Rope) -> set[int]:
            found = {base + p.step for p in parts if isinstance(p, (Ref, Output))}
            eithers = {base + p.cond for p in parts if isinstance(p, Either)}
            if eithers:
                late.add(len(sources))
            return found | eithers

        for prefix in plan.prefixes:
            sources.append(steps(prefix.parts) | ({prefix.parent} if prefix.parent >= 0 else set()))
        for number, step in enumerate(plan.steps):
            if isinstance(step, Compute):
                found = steps(step.operands)
            elif isinstance(step, Pick):
                found = {base + step.cond}
                late.add(base + number)
            else:
                found = {step.prefix} | steps(step.choices if isinstance(step, Choose) else ())
            if step.when is not None:
                cond, wanted = step.when
                found.add(base + cond)
                guarded.setdefault(cond, []).append((number, wanted))
            sources.append(found)
        releases: list[list[int]] = [[] for _ in sources]
        for number, found in enumerate(sources):
            for source in sorted(found):
                releases[source].append(number)
        specs = {n: _spec(s) for n, s in enumerate(plan.steps) if isinstance(s, Decode)}
        return cls(
            plan,
            tuple(map(len, sources)),
            tuple(map(tuple, releases)),
            specs,
            {cond: tuple(found) for cond, found in guarded.items()},
            frozenset(late),
        )


def _spec(step: Decode) -> GenSpec:
    sampling = _fields(step.sampling)
    if step.defaults is not None:
        sampling = sampling.over(_fields(step.defaults).over(RUN_DEFAULTS))
    return GenSpec(step.name, sampling, step.constraint, step.dtype, step.n)


def _fields(given: Mapping[str, Any]) -> SamplingFields:
    """Sampling fields of a plan, which JSON may have made lists of."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return SamplingFields(**values)


def location(at: str) -> Location | None:
    file, _, line = at.rpartition(":")
    return Location(file, int(line)) if file else None


@dataclass
class Answer:
    """What a call has given so far. `chunks` are those of the first sample."""

    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    chunks: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)
    segments: Prompt = ()
    text: str = ""
    meta: dict[str, Any] | Delta | None = None  # a Delta becomes meta info when it is asked for
    over: bool = False


class Execution:
    """One run of a plan. `start` may be called from any thread; `values`, `answers` and `errors` only grow."""

    def __init__(
        self, schedule: Schedule, session: Session, arguments: Mapping[str, str], decide: Decide
    ) -> None:
        self.schedule = schedule
        self.plan = schedule.plan
        self.session = session
        self.arguments = arguments
        self.values: list[Any] = [MISSING] * len(self.plan.steps)
        self.answers: dict[int, Answer] = {}
        self.errors: dict[int, RunError] = {}  # by step: its own error, or that of what it needs
        self.stopped = False
        self.over = False
        self._decide = decide
        self._segments: list[Prompt | None] = [None] * len(self.plan.prefixes)
        self._needs = list(schedule.needs)
        self._running = 0
        self._changed = threading.Condition()
        self._waiting = 0
        self._when_over: list[Callable[[], None]] = []
        self._reads_left = set(self.plan.reads)
        self._dead: set[int] = set()  # steps of the arm that is not taken
        self._late: dict[int, list[int]] = {}  # who waits for a step since a condition is known
        self._hints: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self.session.loop.call_soon_threadsafe(self.begin)

    def stop(self) -> None:
        """Start no more calls."""
        self.stopped = True

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool]) -> None:
        """Block until `ready`, which is asked again whenever something has changed."""
        if ready():
            return
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(ready)
            finally:
                self._waiting -= 1

    def _notify(self) -> None:
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def when_over(self, call: Callable[[], None]) -> None:
        """Call on the loop when nothing runs any more. To be said before it starts."""
        self._when_over.append(call)

    @property
    def reads_done(self) -> bool:
        """Whether everything that the body reads is there, or will never be."""
        return self.over or not self._reads_left

    @property
    def read_error(self) -> RunError | None:
        """The error of the first value that the body reads and that failed."""
        return next((self.errors[n] for n in self.plan.reads if n in self.errors), None)

    @property
    def state_error(self) -> RunError | None:
        """The error of the final state."""
        return next((self.errors[n] for n in self.plan.fatal if n in self.errors), None)

    # -- walking ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """`start`, on the loop itself."""
        self._go([number for number, count in enumerate(self._needs) if not count])
        self._settle()

    def _go(self, ready: list[int]) -> None:
        """Do what is ready, and what becomes ready by it without the model."""
        base = len(self.plan.prefixes)
        queue = deque(ready)
        while queue:
            number = queue.popleft()
            if number in self.schedule.late and self._waits(number):
                continue
            if number < base:
                done = self._extend(number)
            else:
                done = self._do(number - base)
            if done:
                queue.extend(self._released(number))

    def _released(self, number: int) -> list[int]:
        found: list[int] = []
        late = self._late.pop(number, ()) if self._late else ()
        for other in (*self.schedule.releases[number], *late):
            self._needs[other] -= 1
            if not self._needs[other]:
                found.append(other)
        return found

    def _waits(self, number: int) -> bool:
        """Whether something needs more now that its conditions are known; then it will be released again."""
        base = len(self.plan.prefixes)
        parts: list[Variable] = []
        if number < base:
            parts += self.plan.prefixes[number].parts
        else:
            step = self.plan.steps[number - base]
            if isinstance(step, Pick):
                parts.append(step.then if self.values[step.cond] else step.orelse)
            elif isinstance(step, Choose):
                parts += step.choices
            elif isinstance(step, Compute):
                parts += step.operands
        missing = {n for part in parts for n in self._sources(part) if self.values[n] is MISSING}
        for source in missing:
            self._late.setdefault(base + source, []).append(number)
            if source in self.errors:
                self._poison(number, self.errors[source])
        self._needs[number] = len(missing)
        return bool(missing)

    def _sources(self, part: Variable) -> list[int]:
        """The steps that a part needs, as far as its conditions are known."""
        if not isinstance(part, Either):
            return list(refs(part))
        if self.values[part.cond] is MISSING:
            return [part.cond]
        return [n for p in self._arm(part) for n in self._sources(p)]

    def _arm(self, part: Either) -> Rope:
        return part.then if self.values[part.cond] else part.orelse

    def _settle(self) -> None:
        if not self._running and not self.over:
            self.over = True
            self._segments = []
            for call in self._when_over:
                call()
        self._notify()

    def _extend(self, number: int) -> bool:
        prefix = self.plan.prefixes[number]
        added: list[Segment] = []
        try:
            for part in prefix.parts:
                added.extend(self.segments_of(part))
        except RunError as error:
            self._poison(number, error)
            return False
        before = self._segments[prefix.parent] if prefix.parent >= 0 else ()
        assert before is not None, "a prefix is known before what goes on from it"
        # What came before is merged already; only its end can run together with what is new.
        self._segments[number] = (*before[:-1], *merge_text((*before[-1:], *added)))
        return True

    def _do(self, number: int) -> bool:
        """Do a step; False if it is not done yet, or never will be."""
        step = self.plan.steps[number]
        if number in self._dead:
            return False
        at = location(getattr(step, "at", ""))
        try:
            if isinstance(step, Compute):
                self._finish(number, self._compute(step))
                return True
            if isinstance(step, Pick):
                self._finish(number, self.value_of(step.then if self.values[step.cond] else step.orelse))
                return True
            if isinstance(step, Prefill):
                self._prefill(step)
            elif self.stopped:
                return False
            elif isinstance(step, Decode):
                self._decode(number, step, at)
            else:
                self._choose(number, step, at)
        except BaseException as error:
            self._fail(number, error, at)
        return False

    def _compute(self, step: Compute) -> Any:
        operands = tuple(self.value_of(part) for part in step.operands)
        if step.op == "pack":
            return pack(step.kind, step.keys, operands)
        return compute(step.op, operands)

    def _prefill(self, step: Prefill) -> None:
        """Ask for a prefix ahead of its calls; where they are ready too, they bring it along themselves."""
        base = len(self.plan.prefixes)
        waits = any(
            self._needs[base + n] > 0
            for n, other in enumerate(self.plan.steps)
            if isinstance(other, (Decode, Choose)) and self._extends(other.prefix, step.prefix)
        )
        prompt = self._segments[step.prefix]
        if waits and prompt and self.session.capabilities.prefill and not self.stopped:
            task = self.session.loop.create_task(self.session.backend.prefill(prompt))
            self._hints.add(task)
            task.add_done_callback(self._hinted)

    def _hinted(self, task: asyncio.Task[None]) -> None:
        self._hints.discard(task)
        if (
            not task.cancelled() and task.exception() is not None
        ):  # a hint may fail; the call itself will tell
            log.debug("prefill failed: %s", task.exception())

    def _extends(self, prefix: int, start: int) -> bool:
        while prefix > start:
            prefix = self.plan.prefixes[prefix].parent
        return prefix == start

    # -- calls ------------------------------------------------------------------------------------------------

    def _decode(self, number: int, step: Decode, at: Location | None) -> None:
        spec = self.schedule.specs[number]
        request = self.session.request(spec, self._prompt(step.prefix), self._conversation(step), at)
        if (uses := self.plan.prefixes[step.prefix].uses) > 1:
            request = msgspec.structs.replace(request, uses=uses)
        answer = self.answers[number] = Answer()
        self._running += 1

        def receive(delta: Delta | BaseException) -> None:
            if answer.over:
                return
            try:
                if isinstance(delta, BaseException):
                    raise delta
                if delta.finish is not None and delta.finish.type == "error":
                    raise RunError(delta.finish.message or "the backend failed")
                answer.deltas.setdefault(delta.index, []).append(delta)
                if delta.index == 0 and delta.text:
                    answer.chunks.append(
                        (delta.text, meta_info(delta, delta.id) if self.session.stream else None)
                    )
                ended = sum(d[-1].finish is not None for d in answer.deltas.values())
                if ended < (spec.n or 1):
                    self._notify()
                    return
                value = self._answered(answer, spec)
            except BaseException as error:
                self._ended(number, answer, error, at)
                return
            self._ended(number, answer, None, at, value)

        self.session.submit(request, receive)

    def _answered(self, answer: Answer, spec: GenSpec) -> Any:
        results: dict[int, Result] = {i: collect(d) for i, d in answer.deltas.items()}
        first = results[0]
        last = answer.deltas[0][-1]
        whole = msgspec.structs.replace(
            last,
            text=first.text,
            output_logprobs=first.output_logprobs,
            output_top_logprobs=first.output_top_logprobs,
            input_logprobs=first.input_logprobs,
            input_top_logprobs=first.input_top_logprobs,
        )
        answer.meta = whole
        answer.text, answer.segments = first.text, first.segments()
        answer.deltas.clear()
        return first.text if spec.n is None else [results[i].text for i in sorted(results)]

    def _choose(self, number: int, step: Choose, at: Location | None) -> None:
        able = self.session.capabilities
        if not able.score:
            raise RunError(
                f"select({step.name!r}): the backend ({able.name}) gives no log-probabilities to choose by",
                at,
            )
        choices = tuple(self.text_of(c) for c in step.choices)
        answer = self.answers[number] = Answer()
        self._running += 1

        def receive(result: ScoreResult | BaseException) -> None:
            try:
                if isinstance(result, BaseException):
                    raise result
                decision = self._decide(step.method, choices, result)
            except BaseException as error:
                self._ended(number, answer, error, at)
                return
            text = decision.decision
            meta = decision.meta_info or {}
            answer.text, answer.segments, answer.meta = text, (TextSegment(text),), meta
            answer.chunks.append((text, meta))
            self._ended(number, answer, None, at, text)

        without = step.method == "unconditional_likelihood_normalized"
        self.session.score(
            Score(prompt=self._prompt(step.prefix), choices=choices, unconditional=without), receive
        )

    def _prompt(self, prefix: int) -> Prompt:
        found = self._segments[prefix]
        assert found is not None, f"prefix {prefix} is not known yet"
        return found

    def _conversation(self, step: Decode) -> tuple[Message, ...] | None:
        """The prompt as a conversation, for backends that take nothing else."""
        if not self.session.capabilities.chat_only or (step.messages < 0 and step.role is None):
            return None
        found = [Message(m["role"], m["content"]) for m in self.messages_to(step.messages)]
        if step.role is not None:
            partial = "".join(self.text_of(p) for p in step.content)
            if partial or step.role != "assistant":
                found.append(Message(step.role, partial))
        return tuple(found)

    def _ended(
        self, number: int, answer: Answer, error: BaseException | None, at: Location | None, value: Any = None
    ) -> None:
        self._running -= 1
        answer.over = True
        if error is not None:
            self._fail(number, error, at)
        else:
            self._finish(number, value)
            self._go(self._released(len(self.plan.prefixes) + number))
        self._settle()

    def _finish(self, number: int, value: Any) -> None:
        self.values[number] = value
        self._reads_left.discard(number)
        if number in self.schedule.guarded:
            self._bury(number, bool(value))

    def _bury(self, cond: int, value: bool) -> None:
        """The steps of the arm that is not taken never happen, nor those that their conditions guard."""
        for step, wanted in self.schedule.guarded[cond]:
            if wanted != value:
                self._dead.add(step)
                self._reads_left.discard(step)
                if step in self.schedule.guarded:
                    self._bury_all(step)

    def _bury_all(self, cond: int) -> None:
        for step, _ in self.schedule.guarded[cond]:
            self._dead.add(step)
            self._reads_left.discard(step)
            if step in self.schedule.guarded:
                self._bury_all(step)

    def _fail(self, number: int, error: BaseException, at: Location | None) -> None:
        if isinstance(error, ComputeError) and error.__cause__ is not None:
            error = error.__cause__
        found = _located(error, at)
        self.errors[number] = found
        self._reads_left.discard(number)
        self._poison(len(self.plan.prefixes) + number, found)
        if number in self.plan.fatal or self.read_error is not None:
            self.stop()

    def _poison(self, number: int, error: RunError) -> None:
        """What needs it will never be: its steps have the same error."""
        base = len(self.plan.prefixes)
        queue = [number]
        seen = {number}
        while queue:
            current = queue.pop()
            if current >= base:
                self.errors.setdefault(current - base, error)
                self._reads_left.discard(current - base)
            for other in (*self.schedule.releases[current], *self._late.get(current, ())):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)

    def meta_of(self, number: int) -> dict[str, Any] | None:
        """Meta info of a call that has ended."""
        while number >= 0 and isinstance(step := self.plan.steps[number], Pick):
            number = step.steps[0 if self.values[step.cond] else 1]
        if number < 0:
            return None
        answer = self.answers[number]
        if isinstance(answer.meta, Delta):
            answer.meta = meta_info(answer.meta, answer.meta.id)
        return answer.meta

    # -- what is known ----------------------------------------------------------------------------------------

    def segments_of(self, part: Part) -> Prompt:
        if isinstance(part, Output) and part.tokens:
            return self.answers[part.step].segments
        if isinstance(part, ImagePart):
            return (TextSegment(part.token), ImageSegment(part.data))
        if isinstance(part, Either):
            return tuple(segment for p in self._arm(part) for segment in self.segments_of(p))
        return (TextSegment(self.text_of(part)),)

    def text_of(self, part: Part) -> str:
        if isinstance(part, Output):
            return self.answers[part.step].text
        if isinstance(part, ImagePart):
            return part.token
        if isinstance(part, Either):
            return "".join(self.text_of(p) for p in self._arm(part))
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
            return MISSING if any(v is MISSING for v in found) else found
        if isinstance(part, Output):
            return MISSING if self.values[part.step] is MISSING else self.answers[part.step].text
        if isinstance(part, Either):
            missing = self.values[part.cond] is MISSING or any(
                self.value_of(p) is MISSING for p in self._arm(part)
            )
            return MISSING if missing else self.text_of(part)
        return ABSENT if isinstance(part, Absent) else part.token

    def error_of(self, part: Variable) -> RunError | None:
        """Why a variable will never have a value."""
        if isinstance(part, Gathered):
            return next((e for e in map(self.error_of, part.items) if e is not None), None)
        if isinstance(part, Either):
            known = self.values[part.cond] is not MISSING
            parts: Rope = self._arm(part) if known else (Ref(part.cond),)
            return next((e for e in map(self.error_of, parts) if e is not None), None)
        return self.errors.get(part.step) if isinstance(part, (Ref, Output)) else None

    def _before_both(self, message: PlanMessage) -> int:
        """The last message that both ways of a conversation have."""
        one, two = message.parent, message.orelse
        while one != two:
            if one > two:
                one = self.plan.conversation[one].parent
            else:
                two = self.plan.conversation[two].parent
        return one

    def messages_to(self, last: int) -> list[dict[str, Any]]:
        """The conversation up to message `last`, as far as it is known."""
        chain: list[Any] = []
        while last >= 0:
            message = self.plan.conversation[last]
            if message.cond >= 0:
                if (
                    self.values[message.cond] is MISSING
                ):  # a failed run: only what both ways have in common is sure
                    chain.clear()
                    last = self._before_both(message)
                else:
                    last = message.parent if self.values[message.cond] else message.orelse
                continue
            chain.append(message)
            last = message.parent
        found: list[dict[str, Any]] = []
        for message in reversed(chain):
            if any(self.value_of(p) is MISSING for p in message.content):
                break
            text = "".join(self.text_of(p) for p in message.content).lstrip()
            images = [_image_part(p.data) for p in message.content if isinstance(p, ImagePart)]
            content: Any = [{"type": "text", "text": text}, *images] if images else text
            found.append({"role": message.role, "content": content})
        return found


def _image_part(data: bytes) -> dict[str, Any]:
    import base64

    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }


def _located(error: BaseException, at: Location | None) -> RunError:
    """The error with the place in the user's program."""
    if isinstance(error, RunError) and (error.at is not None or at is None):
        return error
    message = error.message if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    found = RunError(message, at)
    found.__cause__ = error.__cause__ if isinstance(error, RunError) else error
    return found
