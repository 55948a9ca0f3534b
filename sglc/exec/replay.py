"""Guarded replay: the Python function runs for real, while its plan runs ahead of it.

For a program that breaks somewhere, the plan holds only what comes before the break, which every run does
(lang/prefix.py). Both, the plan and the live state of the function, send their calls through one `Ledger`: whichever
comes first to a call sends it, the other one takes its answer. A call is the same if all that the backend would see of it
is the same, so a plan cannot change what the function gets; where it predicted wrongly, nobody takes the answer.
What the function reads one after the other is so computed at the same time, and nothing is computed twice.

A plan starts no call that the function might not make, with one exception: where a call fails, the function may
end before others that were already under way. None are started after that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from runtime.api import Delta, Generate, Score, ScoreResult
from runtime.backends.base import Backend
from runtime.plan import Choose, Decode
from sglc.exec.executor import Execution
from sglc.exec.interpreter import interpret
from sglc.exec.live_state import Decide
from sglc.exec.schedule import Schedule
from sglc.exec.session import Receive, Session, Template
from sglc.ir.core import Module
from sglc.ir.ops import Break, Host, Return
from sglc.ir.specs import SamplingFields
from sglc.passes.pipeline import BEFORE_BREAK, Pipeline
from sglc.plan.lower import lower


@dataclass
class _Call:
    """A call that one side has sent. What has come of it so far is kept for the other one."""

    sender: object
    came: list[Any] = field(default_factory=list)
    receivers: list[Callable[[Any], None]] = field(default_factory=list)

    def receive(self, item: Any) -> None:  # on the loop
        self.came.append(item)
        for receiver in tuple(self.receivers):
            receiver(item)

    def join(self, receiver: Callable[[Any], None]) -> None:  # on the loop
        self.receivers.append(receiver)
        for item in tuple(self.came):
            receiver(item)


class Ledger:
    """The calls of one run that wait for their other side. Everything here runs on the event loop."""

    def __init__(self) -> None:
        self._open: dict[Hashable, deque[_Call]] = {}
        self.shared = 0  # calls that both sides wanted

    def enter(self, key: Hashable, sender: object) -> tuple[_Call, bool]:
        """The call with this key, and whether the other side has sent it already."""
        waiting = self._open.setdefault(key, deque())
        if waiting and waiting[0].sender is not sender:
            self.shared += 1
            return waiting.popleft(), True
        call = _Call(sender)
        waiting.append(call)
        return call, False


class SharedSession(Session):
    """A session whose calls may be answered by those of another one with the same ledger."""

    def __init__(
        self, ledger: Ledger, backend: Backend, template: Template, defaults: SamplingFields
    ) -> None:
        super().__init__(backend, template, defaults)
        self.ledger = ledger

    def _key(self, request: Generate) -> Hashable:
        """What its answer depends on: not its name, nor hints; messages only where the backend reads them."""
        messages = request.messages if self.capabilities.chat_only else None
        bare = msgspec.structs.replace(request, id="", label="", uses=0, priority=0, messages=messages)
        return "generate", msgspec.msgpack.encode(bare)

    def submit(self, request: Generate, receive: Receive) -> None:
        def renamed(item: Delta | BaseException) -> None:
            receive(item if isinstance(item, BaseException) else msgspec.structs.replace(item, id=request.id))

        def enter() -> None:
            call, sent = self.ledger.enter(self._key(request), self)
            call.join(renamed if sent else receive)
            if not sent:
                super(SharedSession, self).submit(request, call.receive)

        self.loop.call_soon_threadsafe(enter)

    def score(self, request: Score, receive: Callable[[ScoreResult | BaseException], None]) -> None:
        def enter() -> None:
            call, sent = self.ledger.enter(("score", msgspec.msgpack.encode(request)), self)
            call.join(receive)
            if not sent:
                super(SharedSession, self).score(request, call.receive)

        self.loop.call_soon_threadsafe(enter)


def schedule_until(module: Module, template: Template) -> Schedule | None:
    """The plan of a graph that ends in `break`; None if it holds nothing that is worth starting.

    No pass may change what is sent, since each call must be one that the function makes. A host function is called by the
    body itself, so a plan that would call one is not run.
    """
    module = Pipeline.parse(BEFORE_BREAK).run(module)
    graph = module.graph
    end = graph.nodes[-1]
    if any(isinstance(node, Host) for node in graph.walk()) or not isinstance(end, Break):
        return None
    ended = graph.with_nodes((*graph.nodes[:-1], Return(end.state, None)))
    plan = lower(Module({**module.graphs, module.main: ended}, module.main, module.constraints), template)
    return Schedule.of(plan) if any(isinstance(s, (Decode, Choose)) for s in plan.steps) else None


def replay(
    program: Any,
    arguments: dict[str, Any],
    schedule: Schedule,
    backend: Backend,
    template: Template,
    sampling: SamplingFields,
    decide: Decide,
    *,
    raise_on_error: bool = False,
) -> Any:
    """Run the body, and the plan ahead of it; the ProgramState, as from an interpreted run."""
    ledger = Ledger()
    ahead = SharedSession(ledger, backend, template, sampling)
    given = {name: arguments[name] for name in schedule.plan.params}
    execution = Execution(schedule, ahead, given, decide)
    execution.start()
    try:
        live = SharedSession(ledger, backend, template, sampling)
        return interpret(program, arguments, backend, sampling, raise_on_error=raise_on_error, session=live)
    finally:
        execution.stop()
