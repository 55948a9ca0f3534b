"""Run the Python function directly: the meaning that every other way of execution is held to."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from runtime.backends.base import Backend
from sglc.config import global_config
from sglc.exec.live_state import LiveState
from sglc.exec.session import Session
from sglc.exec.speculation import Speculation
from sglc.ir.specs import SamplingFields


def session_for(backend: Backend, sampling: SamplingFields, *, stream: bool = False) -> Session:
    """What the states of a run on this backend share; the rows of a batch share one."""
    from sglc.lang.chat_template import chat_template_for

    return Session(backend, chat_template_for(backend.model), sampling, stream)


def interpret(
    program: Any,
    arguments: dict[str, Any],
    backend: Backend,
    sampling: SamplingFields,
    *,
    stream: bool = False,
    raise_on_error: bool = False,
    session: Session | None = None,
) -> Any:
    """Run a program's body on a live state; the ProgramState, with what the body returned in `ret_value`."""
    from sglc.lang.choices import decide
    from sglc.lang.program import _CURRENT
    from sglc.lang.state import ProgramState

    session = session or session_for(backend, sampling, stream=stream)
    ahead = None
    if program.num_api_spec_tokens is not None:
        if stream:
            raise AssertionError(
                f"{program.__name__} has num_api_spec_tokens={program.num_api_spec_tokens}, so it cannot be streamed: what "
                "the model writes is only known to be an answer when it is whole; leave one of the two out"
            )
        if not session.capabilities.prefill:  # where prefixes are kept, going on from one costs nothing
            ahead = Speculation(session, program.num_api_spec_tokens)
    sink = LiveState(session, decide, ahead=ahead)
    state = ProgramState(sink, program.types)

    def body() -> None:
        token = _CURRENT.set(backend)
        try:
            state.ret_value = program.func(state, **arguments)
        finally:
            _CURRENT.reset(token)

    if not stream:
        try:
            body()
        finally:
            sink.finish()
        if raise_on_error and (error := state.error()) is not None:
            raise error
        if global_config.verbosity >= 2:
            print(state.text())
        return state

    def threaded() -> None:
        sink.owned()
        try:
            body()
        except BaseException as error:
            sink.fail(error)
        finally:
            sink.finish()

    threading.Thread(
        target=contextvars.copy_context().run, args=(threaded,), name="sglc-body", daemon=True
    ).start()
    return state
