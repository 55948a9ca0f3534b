"""The engine loop in a thread of this process, behind the interface that the process version has too."""

from __future__ import annotations

import gc
import logging
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from runtime.config import EngineConfig
from runtime.engine.bytecode import kept_bytecode
from runtime.engine.messages import Failed, In, Out, Ready, Stop
from runtime.engine.read_ahead import bytecode_folder, read_ahead
from runtime.errors import (
    Aborted,
    BackendError,
    Conflict,
    Crowded,
    EngineDead,
    EngineError,
    InvalidRequest,
    ModelError,
    NotFound,
    Overloaded,
    TooLong,
    Unsupported,
)

log = logging.getLogger("runtime.engine")
_KINDS = (
    EngineError,
    InvalidRequest,
    TooLong,
    Unsupported,
    NotFound,
    Conflict,
    Overloaded,
    Crowded,
    EngineDead,
    Aborted,
    ModelError,
    BackendError,
)
ERRORS: dict[str, type[EngineError]] = {c.code: c for c in _KINDS}


def error_of(code: str, message: str) -> EngineError:
    """The exception that a code stands for."""
    return ERRORS.get(code, EngineError)(message)


class Transport(Protocol):
    """A way to an engine loop. `receive` is called with messages from another thread. `config` is that of the next loop."""

    config: EngineConfig

    def start(self, receive: Callable[[list[Out]], None]) -> Ready:
        """Load the model; blocks. Raises EngineError if that fails."""
        ...

    def send(self, messages: Sequence[In]) -> None: ...

    def close(self) -> None: ...


class ThreadTransport:
    """The loop in a daemon thread."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._inbox: queue.SimpleQueue[In] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, receive: Callable[[list[Out]], None]) -> Ready:
        read_ahead(self.config.device)
        with kept_bytecode(bytecode_folder(self.config.device)):
            from runtime.engine.loop import EngineLoop

            loop = EngineLoop(self.config)
        self._thread = threading.Thread(target=self._run, args=(loop, receive), name="engine", daemon=True)
        self._thread.start()
        return Ready(loop.info)

    def send(self, messages: Sequence[In]) -> None:
        for message in messages:
            self._inbox.put(message)

    def _run(self, loop, receive: Callable[[list[Out]], None]) -> None:  # type: ignore[no-untyped-def]
        try:
            while True:
                out: list[Out] = []
                block = not loop.busy
                while True:
                    try:
                        message = self._inbox.get(block=block)
                    except queue.Empty:
                        break
                    if isinstance(message, Stop):
                        return
                    out += loop.handle(message)
                    block = False
                out += loop.step()
                if out:
                    receive(out)
        except BaseException as error:
            log.exception("the engine loop has ended")
            receive([Failed("internal_error", f"the engine loop has ended: {type(error).__name__}: {error}")])
        finally:
            loop.close()

    def close(self) -> None:
        if self._thread is not None:
            self.send([Stop()])
            self._thread.join(timeout=10)
            self._thread = None
            gc.collect()  # the loop's parts know each other; a model's memory must not wait for chance
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
