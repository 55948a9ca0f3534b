"""Let an API model write on beyond what a gen asked for, and serve the gens that follow from it.

A program with `num_api_spec_tokens=N` fills a form: gen, fixed text, gen. A provider has to be sent the whole prompt again
for each gen, though the model would have written the fixed text by itself. So the first gen is asked without its stop
strings; what lies beyond them is kept, and as long as the program appends the same text, the next gens take theirs from it.
Nothing is guessed: a gen is served only if it is certain that a call would have ended at the same place, and text
that differs drops what is left. A chat model cannot go on from an answer that has begun, so there the whole message
must follow the form; if it does not, it is asked for again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from runtime.api import Delta, Finish, Generate, SamplingParams, Usage
from sglc.errors import RunError
from sglc.exec.session import Receive, Session
from sglc.ir.specs import Location

TRIES = 3  # of a message that must follow a form


@dataclass
class Surplus:
    """What an answer holds beyond the gens that were served from it.

    ended   the model ended the answer itself
    tokens  of the whole answer, 0 if the provider does not tell
    """

    text: str
    ended: bool
    tokens: int
    sampling: SamplingParams

    def take_text(self, text: str) -> bool:
        """The program appends `text`: whether the model wrote the same."""
        follows = self.text.startswith(text)
        if follows:
            self.text = self.text[len(text) :]
        return follows

    def take_gen(self, sampling: SamplingParams) -> tuple[str, Finish] | None:
        """What a call with these fields would have given; None if that is not certain."""
        if _bare(sampling) != self.sampling:
            return None
        found = min(((at, s) for s in sampling.stop if (at := self.text.find(s)) >= 0), default=None)
        if found is not None:
            text, finish = self.text[: found[0]], Finish("stop", matched=found[1])
        elif self.ended:
            text, finish = self.text, Finish("stop")
        else:
            return None
        if not self._fits(text, sampling.max_new_tokens):
            return None
        self.text = self.text[len(text) :]
        return text, finish

    def _fits(self, text: str, limit: int | None) -> bool:
        """A token has at least one byte, and a part has no more tokens than the whole."""
        return limit is None or len(text.encode()) <= limit or 0 < self.tokens <= limit


def _bare(sampling: SamplingParams) -> SamplingParams:
    """The fields that must be equal for one answer to serve several gens."""
    return msgspec.structs.replace(sampling, stop=(), max_new_tokens=None)


Expected = str | SamplingParams | None  # text, a gen, or something that ends the form


class Speculation:
    """What one state has in store. Calls come in the order of the program, on one thread at a time."""

    def __init__(self, session: Session, tokens: int) -> None:
        self._session = session
        self._tokens = tokens
        self._surplus: Surplus | None = None
        self._lock = threading.Lock()
        self._hurried = False  # since the body appended last
        self._waiting: Callable[[], None] | None = None
        self._form: deque[Expected] = deque()  # what the body has appended, from the next operation on

    # What the body appends, which may be long before it is done.

    def expect(self, item: Expected) -> None:
        self._form.append(item)
        if item is None:
            self.hurry()
        else:
            self._hurried = False

    def hurry(self) -> None:
        """The form is whole, or somebody waits for what it holds so far."""
        with self._lock:
            self._hurried = True
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._session.loop.call_soon_threadsafe(waiting)

    def _when_whole(self, use: Callable[[], None]) -> None:
        """Use an answer once the form that it must follow is known, which the body may still be writing."""
        with self._lock:
            if not self._hurried and None not in self._form:
                self._waiting = use
                return
        use()

    # What is done.

    def passed(self) -> None:
        """The next operation begins."""
        self._form.popleft()

    def wrote(self, text: str) -> None:
        """Text was added to the prompt."""
        if self._surplus is not None and not self._surplus.take_text(text):
            self._surplus = None

    def drop(self) -> None:
        """What follows is no continuation of the answer."""
        self._surplus = None

    def answer(self, request: Generate, receive: Receive, at: Location | None) -> None:
        """Answer a gen: from what is there, or by a call."""
        served = self._surplus.take_gen(request.sampling) if self._surplus is not None else None
        if served is not None and _plain(request):
            receive(Delta(id=request.id, text=served[0], finish=served[1], usage=Usage()))
            return
        self._surplus = None
        begun = bool(request.messages) and request.messages[-1].role == "assistant"  # type: ignore[index]
        if self._session.capabilities.chat_only and not self._session.capabilities.continues and begun:
            raise RunError(
                f"the model did not write the form that the program expects, {TRIES} times, and "
                f"{self._session.capabilities.name} cannot go on from an answer that has begun; write each gen in a message of "
                "its own, say in the prompt how the answer should look, or raise num_api_spec_tokens",
                at,
            )
        if not _plain(request) or not request.sampling.stop:
            self._session.submit(request, receive)
            return
        self._ask(request, receive, TRIES)

    def _ask(self, request: Generate, receive: Receive, tries: int) -> None:
        """Ask without stop strings, and cut the answer; again if it does not follow the form of a chat message."""
        s = request.sampling
        most = None if s.max_new_tokens is None else max(s.max_new_tokens, self._tokens)
        wide = msgspec.structs.replace(s, stop=(), max_new_tokens=most)

        def cut(delta: Delta | BaseException) -> None:
            if isinstance(delta, BaseException) or (
                delta.finish is not None and delta.finish.type == "error"
            ):
                receive(delta)
                return
            assert delta.finish is not None, "a call that is not streamed has one delta"
            tokens = delta.usage.completion_tokens if delta.usage is not None else 0
            found = Surplus(delta.text, delta.finish.type == "stop", tokens, _bare(s))
            if self._session.capabilities.continues:
                use(delta, found)
            else:
                self._when_whole(lambda: again_or_use(delta, found))

        def again_or_use(delta: Delta, found: Surplus) -> None:
            if tries > 1 and not s.greedy and not follows(found, (s, *self._form)):
                self._ask(request, receive, tries - 1)
            else:
                use(delta, found)

        def use(delta: Delta, found: Surplus) -> None:
            served = found.take_gen(s)
            if served is None:  # it may have been cut by max_tokens, at a place that only the model knows
                self._session.submit(request, receive)
                return
            self._surplus = found
            receive(msgspec.structs.replace(delta, text=served[0], finish=served[1], ids=(), ids_text=0))

        self._session.submit(msgspec.structs.replace(request, sampling=wide), cut)


def follows(surplus: Surplus, form: Sequence[Expected]) -> bool:
    """Whether an answer holds all that is expected of it."""
    rest = replace(surplus)
    for item in form:
        if item is None:
            return True
        if not (rest.take_text(item) if isinstance(item, str) else rest.take_gen(item) is not None):
            return False
    return True


def _plain(request: Generate) -> bool:
    """Nothing of the gen is known to a provider only."""
    s = request.sampling
    return (
        s.n == 1
        and s.constraint is None
        and request.logprobs is None
        and not (s.min_new_tokens or s.ignore_eos)
    )
