"""The event loop that serves every live state: one daemon thread of a process, started when first needed."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache


@cache
def _loop_of(pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sglc-loop", daemon=True).start()
    return loop


_starting = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process; a forked child gets its own."""
    with _starting:
        return _loop_of(os.getpid())
