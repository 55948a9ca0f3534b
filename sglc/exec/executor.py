"""Walk a Plan against a backend: a call starts as soon as what it needs is known.

Prefixes and steps form one graph of dependencies; each completion releases what waited for it. Waves are not
barriers here. A guarded step waits for its condition and never happens if that turns out otherwise; what an `Either` or
`Pick` needs is known once its condition is. Rounds of a loop after the first are added when it is known that they happen
(exec/rounds.py). Calls that become ready in the same turn leave in one request (exec/session.py), those of all rows
of a batch included. Everything runs on the event loop's thread; readers in other threads wait
on `changed`. When a call fails, what depends on it never starts.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from contextvars import copy_context
from types import MappingProxyType
from typing import Any

import msgspec

from runtime.api import (
    Delta,
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
    Choose,
    Compute,
    Decode,
    Enter,
    HostCall,
    Last,
    Pick,
    PlanMessage,
    Prefill,
    Prefix,
    Repeat,
    Turn,
    Variable,
)
from sglc.errors import RunError
from sglc.exec.conversation import content_of
from sglc.exec.failures import BodyError, located
from sglc.exec.readings import MISSING, Answer, Readings, images_of
from sglc.exec.rounds import Shift
from sglc.exec.schedule import Schedule, is_late, location, parts_of, sources_of
from sglc.exec.session import Session, whole_of
from sglc.ir.specs import GenSpec, Location

log = logging.getLogger("sglc")

_PROMISED: Mapping[str, Any] = MappingProxyType({"str": str, "bool": bool, "int": int, "float": (int, float)})
Decide = Callable[[Any, tuple[str, ...], ScoreResult], Any]


class Execution(Readings):
    """One run of a plan. `start` may be called from any thread; `values`, `answers` and `errors` only grow."""

    def __init__(
        self, schedule: Schedule, session: Session, arguments: Mapping[str, str], decide: Decide
    ) -> None:
        super().__init__(schedule, arguments)
        self.session = session
        self.stopped = False
        self.over = False
        self._decide = decide
        self._failed_at = sys.maxsize  # no step after this one starts a call
        self._segments: list[Prompt | None] = [None] * len(self.plan.prefixes)
        self._needs = list(schedule.needs)
        self._running = 0
        self._changed = threading.Condition()
        self._waiting = 0
        self._when_over: list[Callable[[], None]] = []
        self._reads_left = set(self.plan.reads)
        self._dead: set[int] = set()  # steps of the arm that is not taken
        self._late: dict[int, list[int]] = {}  # who waits for something else since a condition is known
        self._broken: dict[int, RunError] = {}  # prefixes that will never be
        self._reads: Sequence[int] = self.plan.reads
        self._fatal: Sequence[int] = self.plan.fatal
        self._guarded = schedule.guarded
        self._is_late: Set[int] = schedule.late
        self._template: dict[int, int] = {}  # steps of later rounds -> the plan's step that they repeat
        self._begun: list[int] = []  # what can be done at once of a round that has just been added
        self._context = copy_context()  # in which host functions run
        self._hints: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self.session.loop.call_soon_threadsafe(self.begin)

    def stop(self) -> None:
        """Start no more calls."""
        self.stopped = True

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Block until `ready`, which is asked again whenever something has changed. Raises TimeoutError."""
        if ready():
            return
        with self._changed:
            self._waiting += 1
            try:
                if not self._changed.wait_for(ready, timeout):
                    raise TimeoutError(f"not there after {timeout} s")
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
        return next((self.errors[n] for n in self._reads if n in self.errors), None)

    @property
    def state_error(self) -> RunError | None:
        """The error of the final state."""
        return next((self.errors[n] for n in self._fatal if n in self.errors), None)

    # -- walking ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """`start`, on the loop itself."""
        self._go([number for number, count in enumerate(self._needs) if not count])
        self._settle()

    def _go(self, ready: list[int]) -> None:
        """Do what is ready, and what becomes ready by it without the model."""
        base = len(self.plan.prefixes)
        queue = deque(ready)
        while queue or self._begun:
            if self._begun:
                queue.extend(self._begun)
                self._begun.clear()
            number = queue.popleft()
            if number in self._is_late and self._waits(number):
                continue
            if number < base or self._is_prefix(number):
                done = self._extend(number)
            else:
                done = self._do(number - base)
            if done:
                queue.extend(self._released(number))

    def _is_prefix(self, number: int) -> bool:
        """Whether it is a prefix of a later round: those have numbers behind all others."""
        return number < len(self.prefixes) and self.prefixes[number] is not None

    def _released(self, number: int) -> list[int]:
        found: list[int] = []
        late = self._late.pop(number, ()) if self._late else ()
        for other in (*self._releases(number), *late):
            self._needs[other] -= 1
            if not self._needs[other]:
                found.append(other)
        return found

    def _releases(self, number: int) -> tuple[int, ...]:
        static = self.schedule.releases
        return static[number] if number < len(static) else ()

    def _waits(self, number: int) -> bool:
        """Whether something needs more now that its conditions are known; then it will be released again."""
        base = len(self.plan.prefixes)
        static = number < base or self._is_prefix(number)
        item = self.prefixes[number] if static else self.steps[number - base]
        parts: list[Variable] = [*parts_of(item)]
        if isinstance(item, (Pick, Enter, Last)):
            parts.append(self.taken(item))
        missing = {n for part in parts for n in self.waits_for(part) if self.values[n] is MISSING}
        if isinstance(item, (HostCall, Turn)):
            missing |= {n for n in item.after if self.values[n] is MISSING and n not in self._dead}
        for source in missing:
            self._late.setdefault(base + source, []).append(number)
            if source in self.errors:
                self._poison(number, self.errors[source])
        self._needs[number] = len(missing)
        return bool(missing)

    # -- rounds of loops --------------------------------------------------------------------------------------

    def _turn(self, number: int, step: Turn) -> bool:
        """The end of a round: whether it was the last one."""
        again = self.value_of(step.again)
        repeat = self.steps[step.repeat]
        assert isinstance(repeat, Repeat)
        if again and step.round == repeat.maximum and not repeat.bounded:
            raise RunError(f"a loop needs more than {repeat.maximum} rounds")
        if again and step.round < repeat.maximum:
            self._add_round(len(self.plan.prefixes) + number, self.rounds(step.repeat))
            return False
        self._finish(number, False)
        return True

    def _add_round(self, turn: int, rounds: list[Shift]) -> None:
        """Add the body once more, under numbers behind all others. `turn` is the node that ended the round before."""
        if not isinstance(self.steps, list):
            self.steps, self.prefixes, self.conversation = (
                list(self.steps),
                list(self.prefixes),
                list(self.conversation),
            )
            self._reads, self._fatal = list(self._reads), list(self._fatal)
            self._guarded, self._is_late = dict(self._guarded), set(self._is_late)
        before = rounds[-1]
        repeat, number = before.repeat, before.number
        base, first = len(self.plan.prefixes), len(self._needs)
        (low, high), (start, stop) = repeat.prefixes, repeat.messages
        offset = first + high - low - base - (number + 1)
        shift = Shift(number, repeat, before.round + 1, offset, first - low, len(self.conversation) - start)
        enters = {
            v.enter: Enter(value=before.variable(v.value), step=before.step(v.step), when=repeat.when)
            for v in repeat.values
        }
        heads = {s.head: Prefix(before.prefix(s.end), (), self.prefixes[s.head].uses) for s in repeat.states}
        ways = {s.head_message: PlanMessage(before.message(s.end_message), "", ()) for s in repeat.states}
        prefixes = [heads.get(n) or shift.moved_prefix(self.prefixes[n]) for n in range(low, high)]
        steps = [enters.get(n) or shift.moved_step(self.steps[n]) for n in range(number + 1, repeat.stop)]
        messages = [ways.get(n) or shift.moved_message(self.conversation[n]) for n in range(start, stop)]
        _put(self.prefixes, first, prefixes, None)
        _put(self.steps, number + 1 + offset, steps, None)
        _put(self.conversation, len(self.conversation), messages, None)
        _put(self._segments, first, [None] * len(prefixes), None)
        _put(self.values, number + 1 + offset, [MISSING] * len(steps), MISSING)
        self._tell_apart(shift)
        self._late.setdefault(base + number + len(steps) + offset, []).append(base + number)
        for node, item in enumerate([*prefixes, *steps], first):
            if is_late(item):
                self._is_late.add(node)  # type: ignore[attr-defined]
            self._needs.append(0)
        for node, item in enumerate([*prefixes, *steps], first):
            self._await(node, sources_of(item, base))
        rounds.append(shift)
        self._notify()

    def _tell_apart(self, shift: Shift) -> None:
        """What is known of steps by their number, for those of a round that has been added."""
        reads, fatal = frozenset(self.plan.reads), frozenset(self.plan.fatal)
        for old in range(shift.number + 1, shift.repeat.stop):
            new = shift.step(old)
            template = self._template[new] = self._template.get(old, old)
            if template in reads:
                self._reads.append(new)  # type: ignore[attr-defined]
                self._reads_left.add(new)
            if template in fatal:
                self._fatal.append(new)  # type: ignore[attr-defined]
            when = self.steps[new].when
            if when is not None:
                others = self._guarded.get(when[0], ())
                self._guarded[when[0]] = (*others, (new, when[1]))  # type: ignore[index]

    def _await(self, node: int, sources: Set[int]) -> None:
        """Let a node of a round that has just been added begin when its sources are there."""
        base = len(self.plan.prefixes)
        error: RunError | None = None
        for source in sources:
            prefix = source < base or self._is_prefix(source)
            known = (
                self._segments[source] is not None if prefix else self.values[source - base] is not MISSING
            )
            if not known:
                self._needs[node] += 1
                self._late.setdefault(source, []).append(node)
                error = error or (self._broken.get(source) if prefix else self.errors.get(source - base))
        if error is not None:
            self._poison(node, error)
        elif not self._needs[node]:
            self._begun.append(node)

    def _settle(self) -> None:
        if not self._running and not self.over:
            self.over = True
            self._segments = []
            for call in self._when_over:
                call()
        self._notify()

    def _extend(self, number: int) -> bool:
        prefix = self.prefixes[number]
        added: list[Segment] = []
        try:
            for part in prefix.parts:
                added.extend(self.segments_of(part))
        except Exception as error:
            self._poison(number, located(error, None))
            return False
        before = self._segments[prefix.parent] if prefix.parent >= 0 else ()
        assert before is not None, "a prefix is known before what goes on from it"
        # What came before is merged already; only its end can run together with what is new.
        self._segments[number] = (*before[:-1], *merge_text((*before[-1:], *added)))
        return True

    def _do(self, number: int) -> bool:
        """Do a step; False if it is not done yet, or never will be."""
        step = self.steps[number]
        if number in self._dead:
            return False
        at = location(getattr(step, "at", ""))
        try:
            if isinstance(step, Compute):
                self._finish(number, self._compute(step))
                return True
            if isinstance(step, (Pick, Enter, Last)):
                self._finish(number, self.value_of(self.taken(step)))
                return True
            if isinstance(step, Repeat):
                self._finish(number, len(self.rounds(number)))
                return True
            if isinstance(step, Turn):
                return self._turn(number, step)
            if isinstance(step, HostCall):
                self._call_host(number, step, at)
                return False
            if isinstance(step, Prefill):
                self._prefill(step)
            elif self.stopped or number > self._failed_at:
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

    def _call_host(self, number: int, step: HostCall, at: Location | None) -> None:
        """Call a function of the client in a thread, for it may block."""
        function = self.schedule.hosts[step.function]
        args = tuple(self.value_of(part) for part in step.args)
        self._running += 1

        def ended(task: asyncio.Future[Any]) -> None:
            error = task.exception()
            value = None if error is not None else task.result()
            if error is None and not isinstance(value, _PROMISED.get(step.result, object)):
                error = TypeError(
                    f"{step.function} returned {value!r}, which is not the {step.result} it promises"
                )
            self._running -= 1
            if error is not None:
                self._fail(number, BodyError(error, at), at)
            else:
                self._finish(number, value)
                self._go(self._released(len(self.plan.prefixes) + number))
            self._settle()

        work = self.session.loop.run_in_executor(None, self._context.copy().run, function, *args)
        work.add_done_callback(ended)

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
            prefix = self.prefixes[prefix].parent
        return prefix == start

    # -- calls ------------------------------------------------------------------------------------------------

    def _decode(self, number: int, step: Decode, at: Location | None) -> None:
        spec = self.schedule.specs[self._template.get(number, number)]
        request = self.session.request(spec, self._prompt(step.prefix), self._conversation(step), at)
        if (uses := self.prefixes[step.prefix].uses) > 1:
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
                if delta.index == 0 and self.session.stream and (delta.text or delta.finish is not None):
                    told = delta if delta.finish is None else whole_of(answer.deltas[0])
                    answer.chunks.append((delta.text, meta_info(told, delta.id)))
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
        answer.meta = whole_of(answer.deltas[0])
        answer.text, answer.segments = first.text, first.segments()
        answer.deltas.clear()
        return first.text if spec.n is None else [results[i].text for i in sorted(results)]

    def _choose(self, number: int, step: Choose, at: Location | None) -> None:
        self.session.check_select(step.name, at)
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
                found.append(Message(step.role, content_of(partial, images_of(step.content))))
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
        if number in self._guarded:
            self._bury(number, bool(value))

    def _bury(self, cond: int, value: bool) -> None:
        """The steps of the arm that is not taken never happen, nor those that their conditions guard."""
        base = len(self.plan.prefixes)
        buried = [step for step, wanted in self._guarded[cond] if wanted != value]
        while buried:
            step = buried.pop()
            self._dead.add(step)
            self._reads_left.discard(step)
            buried.extend(inner for inner, _ in self._guarded.get(step, ()))
            for other in self._late.get(base + step, ()):
                # Host calls wait only for what happens at all; all else that waits for it will not happen either.
                if not self._is_prefix(other) and isinstance(self.steps[other - base], (HostCall, Turn)):
                    self._needs[other] -= 1
                    if not self._needs[other]:
                        self._begun.append(other)

    def _fail(self, number: int, error: BaseException, at: Location | None) -> None:
        if isinstance(error, ComputeError) and error.__cause__ is not None:
            error = BodyError(error.__cause__, at)
        found = located(error, at)
        self.errors[number] = found
        self._reads_left.discard(number)
        self._poison(len(self.plan.prefixes) + number, found)
        if number in self._fatal or self.read_error is not None:
            # What comes before in the program still runs: interpreted, it would have been there first.
            self._failed_at = min(self._failed_at, number)

    def _poison(self, number: int, error: RunError) -> None:
        """What needs it will never be: its steps have the same error."""
        base = len(self.plan.prefixes)
        queue = [number]
        seen = {number}
        while queue:
            current = queue.pop()
            if current < base or self._is_prefix(current):
                self._broken.setdefault(current, error)
            else:
                self.errors.setdefault(current - base, error)
                self._reads_left.discard(current - base)
            for other in (*self._releases(current), *self._late.get(current, ())):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)


def _put(items: Any, at: int, more: Sequence[Any], hole: Any) -> None:
    """Let `more` begin at the place `at`; what lies before it stays empty."""
    items.extend([hole] * (at - len(items)))
    items.extend(more)
