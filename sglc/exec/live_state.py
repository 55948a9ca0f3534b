"""One state of a run: what was appended, what the model wrote, who waits for it.

Operations are done in the order they were appended. One that needs the model lets those behind it wait in a queue;
`_pump` goes on when the answer is there, on the event loop's thread. Everything else happens at once, in the thread
of the caller. `_lock` guards all fields; no callback of another state is called while it is held.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runtime.api import (
    Delta,
    ImageSegment,
    Message,
    Prompt,
    Score,
    ScoreResult,
    Segment,
    TextSegment,
    answer_segments,
    merge_text,
)
from runtime.engine.native import meta_info
from runtime.reasoning import split_reasoning
from sglc.errors import RunError
from sglc.exec.conversation import content_of
from sglc.exec.session import Session, whole_of
from sglc.exec.speculation import Expected, Speculation
from sglc.ir.specs import GenSpec, ImageSpec, Location, SelectSpec

Decide = Callable[[Any, tuple[str, ...], ScoreResult], Any]
_END = object()
log = logging.getLogger("sglc")


class LiveState:
    """A `Sink` (lang/sink.py) that sends calls to a backend at once. `decide` applies a select's method to scores."""

    def __init__(
        self,
        session: Session,
        decide: Decide,
        parent: LiveState | None = None,
        ahead: Speculation | None = None,
    ) -> None:
        self._session = session
        self._decide = decide
        self._lock = threading.RLock()
        self._changed: threading.Condition | None = None
        self._queue: deque[Callable[[], bool]] = deque()
        self._born = parent is None  # a child begins when its parent gets to the fork
        self._busy = not self._born
        self._pending: dict[Any, int] = {}
        self._open_scopes: list[str] = []
        self._closed = False
        self._idle_calls: list[Callable[[], None]] = []
        self._base: Prompt = ()
        self._tail: list[Segment] = []
        self._head = ""
        self._parts: list[str] = []
        self._fork_at = 0
        self._said_before = 0  # messages that the parent had at the fork
        self._length = 0
        self._variables: dict[Any, Any] = {}
        self._meta: dict[Any, dict[str, Any] | Delta] = {}
        self._messages: list[dict[str, Any]] = []
        self._role: str | None = None
        self._role_at = 0
        self._images: list[bytes] = []  # of the open message
        self._shown: list[bytes] = []  # since the fork
        self._scopes: dict[str, int] = {}
        self._error: BaseException | None = None
        self._log: list[tuple[Any, str, dict[str, Any] | None]] = []
        self._owner = threading.get_ident()
        self._ahead = ahead

    # -- doing things in order --------------------------------------------------------------------------------

    def _do(self, step: Callable[[], bool], item: Expected = None) -> None:
        """Run a step now, or when those before it are done. It returns False if it waits for something.

        `item` is what it appends, if that can be told."""
        if self._ahead is not None:
            step = self._expected(self._ahead, step, item)
        with self._lock:
            if self._error is not None:
                return
            if self._busy or self._queue:
                self._queue.append(step)
                return
            self._busy = True
        self._step(step)

    def _expected(self, ahead: Speculation, step: Callable[[], bool], item: Expected) -> Callable[[], bool]:
        def begin() -> bool:
            ahead.passed()
            return step()

        ahead.expect(item)
        return begin

    def _step(self, step: Callable[[], bool]) -> None:
        try:
            done = step()
        except BaseException as error:
            self._fail(error, None)
            return
        if done:
            self._pump()

    def _pump(self) -> None:
        """Go on with the queue until a step waits."""
        while True:
            with self._lock:
                if self._error is not None:
                    return
                if not self._queue:
                    self._busy = False
                    calls, self._idle_calls = self._idle_calls, []
                    self._notify()
                    break
                step = self._queue.popleft()
            try:
                if not step():
                    return
            except BaseException as error:
                self._fail(error, None)
                return
        for call in calls:
            call()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.notify_all()

    def _fail(self, error: BaseException, at: Location | None) -> None:
        if not isinstance(error, RunError):
            wrapped = RunError(f"{type(error).__name__}: {error}", at)
            wrapped.__cause__ = error
            error = wrapped
        elif error.at is None and at is not None:
            located = RunError(error.message, at)
            located.__cause__ = error.__cause__
            error = located
        with self._lock:
            if self._error is None:
                self._error = error
            self._queue.clear()
            self._pending.clear()
            self._busy = False
            calls, self._idle_calls = self._idle_calls, []
            self._notify()
        for call in calls:
            call()

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Block until `ready`, which is evaluated under the lock. Raises TimeoutError."""
        if self._ahead is not None:
            self._ahead.hurry()
        with self._lock:
            if ready():
                return
            if self._changed is None:
                self._changed = threading.Condition(self._lock)
            if not self._changed.wait_for(ready, timeout):
                raise TimeoutError(f"not there after {timeout} s")

    def _define_later(self, name: Any) -> None:
        with self._lock:
            if self._error is None:
                self._pending[name] = self._pending.get(name, 0) + 1

    def _defined(self, name: Any, value: Any, meta: dict[str, Any] | Delta | None) -> None:
        with self._lock:
            self._variables[name] = value
            if meta is not None:
                self._meta[name] = meta
            left = self._pending.get(name, 1) - 1
            if left:
                self._pending[name] = left
            else:
                self._pending.pop(name, None)
            if self._session.stream:
                self._log.append((name, "", None))
            self._notify()

    # -- the text ---------------------------------------------------------------------------------------------

    def _write(self, text: str, segments: Sequence[Segment] | None = None) -> None:
        if not text and not segments:
            return
        if self._ahead is not None:
            self._ahead.wrote(text)
        with self._lock:
            self._parts.append(text)
            self._length += len(text)
            self._extend(segments if segments is not None else (TextSegment(text),))
            if self._session.stream:
                self._log.append((_END, text, None))
                self._notify()

    def _text_now(self) -> str:
        if self._parts:
            self._head += "".join(self._parts)
            self._parts.clear()
        return self._head

    def _extend(self, segments: Sequence[Segment]) -> None:
        """Add to the prompt; neighbouring text becomes one segment, so that a prompt is ready at any time."""
        tail = self._tail
        for segment in segments:
            if isinstance(segment, TextSegment):
                if not segment.text:
                    continue
                if tail and isinstance(tail[-1], TextSegment):
                    tail[-1] = TextSegment(tail[-1].text + segment.text)
                    continue
            tail.append(segment)

    def _prompt(self) -> Prompt:
        base, tail = self._base, self._tail
        if base and tail and isinstance(base[-1], TextSegment) and isinstance(tail[0], TextSegment):
            return merge_text((*base, *tail))
        return (*base, *tail)

    def _conversation(self) -> tuple[Message, ...] | None:
        """The messages so far, with what an open message holds; None outside of any conversation."""
        if not self._messages and self._role is None:
            return None
        messages = [Message(m["role"], m["content"]) for m in self._messages]
        if self._role is not None:
            partial = self._text_now()[self._role_at :]
            if partial or self._role != "assistant":
                messages.append(Message(self._role, content_of(partial, self._images)))
        return tuple(messages)

    # -- appending: the Sink ------------------------------------------------------------------------------------

    def text(self, value: Any, at: Location | None) -> None:
        if not isinstance(value, str):
            raise TypeError(
                f"{at}: {type(value).__name__} cannot be appended to a state; append text or pieces, such as str(...)"
            )

        def step() -> bool:
            self._write(value)
            return True

        self._do(step, value)

    def gen(self, spec: GenSpec, at: Location | None) -> None:
        self._define_later(spec.name)
        if spec.reasoning is not None:
            self._define_later(spec.thoughts)
        deltas: dict[int, list[Delta]] = {}
        grows = (
            self._session.stream and spec.reasoning is None
        )  # reasoning is told from the answer at the end

        def step() -> bool:
            try:
                ahead = self._ahead is not None
                request = self._session.request(spec, self._prompt(), self._conversation(), at, ahead)
                if self._ahead is not None:
                    self._ahead.answer(request, receive, at)
                    return False
            except BaseException as error:
                self._fail(error, at)
                return False
            self._session.submit(request, receive)
            return False

        def receive(delta: Delta | BaseException) -> None:
            if isinstance(delta, BaseException):
                self._fail(delta, at)
                return
            if delta.finish is not None and delta.finish.type == "error":
                self._fail(RunError(delta.finish.message or "the backend failed"), at)
                return
            deltas.setdefault(delta.index, []).append(delta)
            if delta.finish is None:
                if grows and delta.index == 0:
                    self._grow(spec.name, delta, deltas[0])
                return
            if sum(d[-1].finish is not None for d in deltas.values()) < (spec.n or 1):
                if grows and delta.index == 0:
                    self._grow(spec.name, delta, deltas[0])
                return
            whole = whole_of(deltas[0])
            streamed = grows and (len(deltas[0]) > 1 or delta.index != 0)
            if streamed and delta.index == 0:
                self._grow(spec.name, delta, deltas[0])
            text = whole.text
            segments = answer_segments(text, whole.ids, whole.ids_text)
            if spec.reasoning is not None:
                thoughts, text = split_reasoning(text, spec.reasoning)
                segments = (TextSegment(text),)
                self._defined(spec.thoughts, thoughts, None)
            with self._lock:
                self._parts.append(text)
                self._length += len(text)
                self._extend(segments)
                if self._session.stream and not streamed:
                    self._log.append((spec.name, text, meta_info(whole, whole.id)))
            value: Any = text
            if spec.n is not None:
                value = ["".join(d.text for d in deltas[i]) for i in sorted(deltas)]
            self._defined(spec.name, value, whole)
            self._pump()

        self._do(step, self._session.fields_of(spec) if self._ahead is not None else None)

    def _grow(self, name: Any, delta: Delta, so_far: list[Delta]) -> None:
        """A chunk of a variable that is still being written."""
        with self._lock:
            if not delta.text and delta.finish is None:
                return
            told = delta if delta.finish is None else whole_of(so_far)
            self._log.append((name, delta.text, meta_info(told, delta.id)))
            self._variables[name] = "".join(d.text for d in so_far)
            self._notify()

    def select(self, spec: SelectSpec, at: Location | None) -> None:
        self._define_later(spec.name)

        def step() -> bool:
            try:
                self._session.check_select(spec.name, at)
            except RunError as error:
                self._fail(error, at)
                return False
            without = bool(getattr(spec.method, "requires_unconditional_logprobs", False))
            self._session.score(
                Score(prompt=self._prompt(), choices=spec.choices, unconditional=without), receive
            )
            return False

        def receive(result: ScoreResult | BaseException) -> None:
            try:
                if isinstance(result, BaseException):
                    raise result
                decision = self._decide(spec.method, spec.choices, result)
            except BaseException as error:
                self._fail(error, at)
                return
            if self._ahead is not None:
                self._ahead.wrote(decision.decision)
            with self._lock:
                self._parts.append(decision.decision)
                self._length += len(decision.decision)
                self._extend((TextSegment(decision.decision),))
                if self._session.stream:
                    self._log.append((spec.name, decision.decision, decision.meta_info))
            self._defined(spec.name, decision.decision, decision.meta_info or {})
            self._pump()

        self._do(step)

    def image(self, spec: ImageSpec, at: Location | None) -> None:
        def step() -> bool:
            try:
                self._session.check_image(at)
            except RunError as error:
                self._fail(error, at)
                return False
            token = self._session.template.image_token
            self._images.append(spec.data)
            self._shown.append(spec.data)
            self._write(token, (TextSegment(token), ImageSegment(spec.data)))
            return True

        self._do(step)

    def role_begin(self, role: str, at: Location | None) -> None:
        def step() -> bool:
            if self._role is not None:
                self._fail(
                    RunError(f"Nested roles are not allowed: {role} begins inside {self._role}", at), at
                )
                return False
            template = self._session.template
            if not self._messages and role != "system" and template.default_system_prompt:
                prompt = template.default_system_prompt
                prefix, suffix = template.get_prefix_and_suffix("system", self._messages)
                self._write(prefix + prompt + suffix)
                self._messages.append({"role": "system", "content": prompt})
            self._write(template.get_prefix_and_suffix(role, self._messages)[0])
            self._role, self._role_at, self._images = role, self._length, []
            return True

        self._do(step)

    def role_end(self, role: str, at: Location | None) -> None:
        def step() -> bool:
            if self._role != role:
                now = f"the {self._role} message is open" if self._role else "no message is open"
                self._fail(RunError(f"{role}_end without {role}_begin: {now}", at), at)
                return False
            if self._ahead is not None and self._session.capabilities.chat_only:
                self._ahead.drop()
            content = self._text_now()[self._role_at :].lstrip()
            suffix = self._session.template.get_prefix_and_suffix(role, self._messages)[1]
            self._write(suffix)
            self._messages.append({"role": role, "content": content_of(content, self._images)})
            self._role, self._images = None, []
            return True

        self._do(step)

    def scope_begin(self, name: str, at: Location | None) -> None:
        self._define_later(name)
        self._open_scopes.append(name)

        def step() -> bool:
            self._scopes[name] = self._length
            return True

        self._do(step)

    def scope_end(self, name: str, at: Location | None) -> None:
        if name in self._open_scopes:
            self._open_scopes.remove(name)

        def step() -> bool:
            self._defined(name, self._text_now()[self._scopes.pop(name) :], None)
            return True

        self._do(step)

    def fork(self, size: int, at: Location | None) -> Sequence[LiveState]:
        children = [LiveState(self._session, self._decide, self) for _ in range(size)]

        def step() -> bool:
            with self._lock:
                self._base, self._tail = self._prompt(), []
                text = self._text_now()
            for child in children:
                child._adopt(self, text)
            return True

        def failed() -> None:
            if self._error is not None:
                for child in children:
                    child._fail(self._error, at)

        with self._lock:
            dead = self._error
            if self._busy or self._queue:
                self._idle_calls.append(failed)
        if dead is not None:
            for child in children:
                child._fail(dead, at)
        else:
            self._do(step)
        return children

    def _adopt(self, parent: LiveState, text: str) -> None:
        """Begin where the parent is: text, variables, messages and open role are copied."""
        with self._lock:
            if self._error is not None:
                return
            self._born = True
            self._base, self._head = parent._base, text
            self._length = self._fork_at = parent._length
            self._variables = {**parent._variables, **self._variables}
            self._messages, self._said_before = list(parent._messages), len(parent._messages)
            self._role, self._role_at, self._images = parent._role, parent._role_at, list(parent._images)
            if self._session.stream:
                self._log.append((_END, text, None))
        self._pump()

    def join(self, children: Sequence[Any], mode: str, at: Location | None) -> None:
        self._settle()
        for child in children:
            child._settle()
        failed = next((c._error for c in children if c._error is not None), None)
        if failed is not None:
            self._fail(failed, at)
        elif mode == "concate_and_append":
            for child in children:
                text, start = child._text_now(), child._fork_at
                self._do(_writer(self, child, text[start:], _behind(child._prompt(), start, text)))
        else:
            with self._lock:
                before = set(self._variables)
                for child in children:
                    for name, value in child._variables.items():
                        if name not in before:
                            self._variables.setdefault(name, []).append(value)
        for child in children:
            child.finish()

    # -- reading ------------------------------------------------------------------------------------------------

    @staticmethod
    def _seen(error: BaseException) -> None:
        if isinstance(error, RunError):
            error.seen = True

    def __del__(self) -> None:
        error = getattr(self, "_error", None)
        if isinstance(error, RunError) and not error.seen:
            error.seen = True
            log.error("a run failed and nobody looked at its error: %s", error)

    def _raise(self) -> None:
        if self._error is not None:
            self._seen(self._error)
            raise self._error

    def _settle(self) -> None:
        """Wait until everything that was appended is done."""
        self._wait(lambda: not self._busy and not self._queue)

    def read(self, name: Any, at: Location | None) -> Any:
        if name in self._open_scopes and self._owner == threading.get_ident():
            raise RunError(f"the scope {name!r} is read while it is open; read it after the block", at)
        self._wait(lambda: self._error is not None or (self._born and name not in self._pending))
        self._raise()
        return self._variables[name]

    def has(self, name: Any) -> bool:
        return name in self._variables and name not in self._pending

    def assign(self, name: Any, value: Any) -> None:
        with self._lock:
            self._variables[name] = value

    def meta(self, name: Any, timeout: float | None = None) -> dict[str, Any] | None:
        self._wait(lambda: self._error is not None or name not in self._pending, timeout)
        self._raise()
        return self._meta_of(name)

    def _meta_of(self, name: Any) -> dict[str, Any] | None:
        """The meta info of a variable; it is made when somebody asks for it."""
        found = self._meta.get(name)
        if isinstance(found, Delta):
            found = self._meta[name] = meta_info(found, found.id)
        return found

    def full_text(self) -> str:
        self._settle()
        with self._lock:
            return self._text_now()

    def messages(self) -> list[dict[str, Any]]:
        self._settle()
        return self._messages

    def error(self) -> BaseException | None:
        self._settle()
        if self._error is not None:
            self._seen(self._error)
        return self._error

    def sync(self) -> None:
        self._settle()

    def variables(self) -> dict[Any, Any]:
        """All variables that have a value."""
        self._settle()
        return dict(self._variables)

    def fail(self, error: BaseException) -> None:
        """The body of a stream run raised: readers must learn of it."""
        self._fail(error, None)
        self.finish()

    def owned(self) -> None:
        """The calling thread is the one that runs the body."""
        self._owner = threading.get_ident()

    def finish(self) -> None:
        if self._ahead is not None:
            self._ahead.hurry()
        with self._lock:
            self._closed = True
            self._notify()

    # -- streams ------------------------------------------------------------------------------------------------

    def chunks(self, name: str | None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        if not self._session.stream:
            yield (self.full_text() if name is None else self.read(name, None)), self._meta_of(name)
            return
        at = 0
        while True:
            found: list[tuple[str, dict[str, Any] | None]] = []
            with self._lock:
                at = self._take(at, name, found)
                while not found and not self._over(name):
                    self._wait_for_more(len(self._log), name)
                    at = self._take(at, name, found)
            yield from found
            if not found:
                self._raise()
                return

    def _wait_for_more(self, seen: int, name: str | None) -> None:
        self._wait(lambda: len(self._log) > seen or self._over(name))

    def _take(self, at: int, name: str | None, found: list[tuple[str, dict[str, Any] | None]]) -> int:
        """Move the chunks of `name` from position `at` of the log on to `found`; the new position."""
        for key, text, meta in self._log[at:]:
            if (text or meta) and (name is None or key == name):
                found.append((text, meta))
        return len(self._log)

    def _over(self, name: str | None) -> bool:
        """Nothing more can come for a reader of `name`."""
        done = self._closed and not self._busy and not self._queue
        if name is None or self._error is not None:
            return done or self._error is not None
        return done or (self._born and name in self._variables and name not in self._pending)


def _writer(
    state: LiveState, branch: LiveState, text: str, segments: tuple[Segment, ...]
) -> Callable[[], bool]:
    def step() -> bool:
        state._write(text, segments)
        state._messages.extend(branch._messages[branch._said_before :])
        state._shown.extend(branch._shown)
        if state._role is not None:
            state._images.extend(branch._shown)
        return True

    return step


def _behind(prompt: Prompt, start: int, text: str) -> Prompt:
    """What of a prompt lies behind its first characters, with spans as they were generated; only `text` where one
    of them lies across that place."""
    found: list[Segment] = []
    at = 0
    for segment in prompt:
        length = len(getattr(segment, "text", ""))
        if at >= start and (found or length):  # an image right at the place is of what comes before
            found.append(segment)
        elif at < start < at + length:
            if not isinstance(segment, TextSegment):
                return (TextSegment(text[start:]),)
            found.append(TextSegment(segment.text[start - at :]))
        at += length
    return tuple(found)
