"""What belongs to one `generate` of the asyncio facade: its running samples, and the deltas that wait for its reader."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

import msgspec

from runtime.api import Delta
from runtime.engine.messages import Output, Refused
from runtime.engine.text import Answer
from runtime.errors import EngineError

log = logging.getLogger("runtime.engine")


class Call:
    """The running samples of one `generate`, and what waits for its caller to read it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backlog: int | None = None) -> None:
        self.loop = loop
        self._reader = asyncio.current_task()
        self._backlog = backlog
        self._waiting: deque[Delta | EngineError] = deque()
        self._wake: asyncio.Future[None] | None = (
            None  # what the reader waits for; a queue of asyncio costs more
        )
        self.answers: dict[str, Answer] = {}
        self.held: list[
            tuple[Call, Output | Refused]
        ] = []  # not delivered yet; the transport's thread alone uses it

    def put(self, delta: Delta) -> bool:
        """Leave it to the reader. False if that one has left too many waiting: it is cancelled, and everything ends with
        it."""
        self.tell(delta)
        if self._backlog is None or self._reader is None or len(self._waiting) <= self._backlog:
            return True
        log.warning("a caller left %d deltas unread and is dropped", self._backlog)
        self._reader.cancel()
        self._backlog = None
        return False

    def tell(self, news: Delta | EngineError) -> None:
        """Leave it to the reader, however much waits."""
        self._waiting.append(news)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def get(self) -> Delta | EngineError:
        """The oldest that waits, or the next that comes."""
        while not self._waiting:
            self._wake = self.loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._waiting.popleft()


class _Refused(msgspec.Struct):
    """Stands for a sample that was refused before it began."""

    done: bool = True


REFUSED: Any = _Refused()
