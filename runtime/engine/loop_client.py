"""The caller's side of an engine loop: what is sent to it, and who hears what it says.

Calls may come from several event loops; what belongs to a call is delivered on the loop it came from.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from runtime.api import Delta, Embed, Generate
from runtime.engine.call import Call
from runtime.engine.live import Live
from runtime.engine.messages import Answer as Reply
from runtime.engine.messages import (
    Ask,
    Beat,
    End,
    Failed,
    In,
    Lost,
    Out,
    Output,
    Ready,
    Refused,
)
from runtime.engine.text import Answer
from runtime.engine.transport import Transport, error_of
from runtime.errors import EngineDead, EngineError

log = logging.getLogger("runtime.engine")


class LoopClient:
    """The calls that run on an engine loop, and what is known of the loop."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.info: dict[str, Any] = {}
        self.failure: EngineError | None = None  # for good
        self.down: EngineError | None = None  # until another engine process is ready
        self.latest: dict[str, Any] = {}  # the stats of the last heartbeat; an engine in a thread sends none
        self.restarts = 0
        self.live = Live()
        self._calls: dict[str, Call] = {}
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._tickets = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Load the model; blocks, and does nothing the second time. Raises EngineError."""
        with self._lock:
            if not self.info:
                self.info = self.transport.start(self._receive).info
                atexit.register(self.shutdown)  # a model thread must not outlive the interpreter

    async def open(self) -> None:
        """`start`, without blocking the event loop."""
        if not self.info:
            await asyncio.to_thread(self.start)

    async def close(self) -> None:
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """End the loop; running calls end with an error."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.shutdown)
        self._fail(EngineError("the engine was closed"))
        self.transport.close()

    # -- what is said to the loop -------------------------------------------------------------------------

    def _begin(self, call: Call, answer: Answer) -> None:
        """Who hears what the loop says of a sample."""
        call.answers[answer.id] = answer
        self._calls[answer.id] = call
        self.live.begin(answer.id, answer.prompt, answer.request.sampling.max_new_tokens)

    def _send(self, messages: Sequence[In]) -> None:
        if (error := self.failure or self.down) is not None:
            raise type(error)(error.message)
        if self._closed:
            raise EngineError("the engine is closed")
        if messages:
            self.transport.send(messages)

    def abort(self, request: Generate | Embed) -> None:
        """End the samples of a request that runs: each answers once more, with what it has, as finished by `abort`."""
        if not self._closed and self.failure is None:
            calls = list(self._calls.items())
            if ended := [End(id) for id, call in calls if call.answers[id].request is request]:
                self.transport.send([*ended])

    def end_sample(self, id: str) -> bool:
        """End one running sample, named as in `live.running()`: its caller gets what it has, finished by `abort`.
        False if there is none."""
        if id not in self._calls or self._closed or self.failure is not None:
            return False
        self.transport.send([End(id)])
        return True

    def end_calls(self, error: EngineError) -> None:
        """End what runs with an error that its callers are told; the engine itself goes on."""
        ended: list[In] = [End(id) for id in list(self._calls)]
        self._fail(error)
        if ended and not self._closed and self.failure is None and self.down is None:
            self.transport.send(ended)

    def _abandon(self, call: Call) -> None:
        """End what still runs of a call whose reader has left."""
        ended: list[In] = []
        for id, answer in call.answers.items():
            if self._calls.pop(id, None) is not None and not answer.done:
                ended.append(End(id))
                self.live.end(id, "abort")
        if ended and not self._closed and self.failure is None and self.down is None:
            self.transport.send(ended)

    async def ask(self, what: str, value: str = "") -> dict[str, Any]:
        """What the engine loop answers. Raises the EngineError that it answers with."""
        await self.open()
        ticket = next(self._tickets)
        future: Future[dict[str, Any]] = Future()
        self._asked[ticket] = future
        try:
            self._send([Ask(ticket, what, value)])
            return await asyncio.wrap_future(future)
        finally:
            self._asked.pop(ticket, None)

    async def flush_cache(self) -> bool:
        return bool((await self.ask("flush"))["flushed"])

    async def stats(self) -> dict[str, Any]:
        """Use of the KV pool and of the seats."""
        return await self.ask("stats")

    async def check(self) -> dict[str, Any]:
        """A walk over all that holds pages and seats: `problem` is None if it adds up. Takes time on a large cache; `calls`
        counts the samples that somebody still waits for."""
        return {**await self.ask("check"), "calls": len(self._calls)}

    async def prefixes(self) -> list[dict[str, Any]]:
        """The largest cached prefixes: their first tokens, how many there are, and who uses them."""
        found: list[dict[str, Any]] = (await self.ask("prefixes"))["prefixes"]
        return found

    # -- what the loop says -------------------------------------------------------------------------------

    def _receive(self, messages: list[Out]) -> None:
        """Called from the transport's thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Call, Output | Refused]]] = {}
        arrived: list[tuple[str, int]] = []
        for m in messages:
            if isinstance(m, (Output, Refused)):
                if (call := self._calls.get(m.id)) is None:
                    continue
                call.held.append((call, m))
                if isinstance(m, Output):
                    arrived.append((m.id, len(m.tokens)))
                    if m.finish is None and not call.answers[m.id].eager:
                        continue  # nobody would hear of it before the end; waking the caller's loop costs a token's time
                by_loop.setdefault(call.loop, []).extend(call.held)
                call.held = []
            elif isinstance(m, Reply):
                future = self._asked.pop(m.ticket, None)
                if future is None or not future.set_running_or_notify_cancel():
                    continue
                if m.code:
                    future.set_exception(error_of(m.code, m.message))
                else:
                    future.set_result(m.value)
            elif isinstance(m, Beat):
                self.latest = m.stats
            elif isinstance(m, Lost):
                self.down = EngineDead("the engine is being started again; try again in a few seconds")
                self._fail(EngineDead(f"{m.message}; the request was lost with it, send it again"))
            elif isinstance(m, Ready):
                self.info, self.latest, self.down = m.info, {}, None
                self.restarts += 1
            elif isinstance(m, Failed):
                self.failure = error_of(m.code, m.message)
                self._fail(self.failure)
        self.live.outputs(arrived)
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._deliver, items)
            except RuntimeError:  # the caller's event loop is closed
                for call, _ in items:
                    self._abandon(call)

    def _deliver(self, items: list[tuple[Call, Output | Refused]]) -> None:
        ended: list[In] = []
        for call, m in items:
            answer = call.answers[m.id]
            if answer.done:
                continue
            delta, stopped = self._told(answer, m)
            if stopped:
                ended.append(End(m.id))
            if answer.done:
                self._calls.pop(m.id, None)
                cached = delta.usage.cached_tokens if delta and delta.usage else 0
                self.live.end(m.id, delta.finish.type if delta and delta.finish else "error", cached)
            if delta is not None and not call.put(delta):
                self.live.counted.slow_clients += 1
        if ended and not self._closed:
            self.transport.send(ended)

    @staticmethod
    def _told(answer: Answer, m: Output | Refused) -> tuple[Delta | None, bool]:
        """What the caller hears of it, and whether the engine must be told to stop. A mistake in here ends one sample."""
        if isinstance(m, Refused):
            return answer.fail(m.code, m.message), False
        if m.finish is not None and m.finish.type == "error":
            return answer.fail("internal_error", m.finish.message or "the engine failed"), False
        try:
            return answer.feed(m)
        except Exception:
            log.exception("the output of a request cannot be turned into text")
            return answer.fail("internal_error", "the answer could not be turned into text"), True

    def _fail(self, error: EngineError) -> None:
        for name in list(self._calls):
            self.live.end(name, "error")
        calls = {id(c): c for c in list(self._calls.values())}
        self._calls.clear()
        for call in calls.values():
            try:
                call.loop.call_soon_threadsafe(call.tell, error)
            except RuntimeError:
                continue
        for ticket in list(self._asked):
            future = self._asked.pop(ticket, None)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(error)
