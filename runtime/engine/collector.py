"""Python's collector in a process that runs an engine.

A full collection visits every item of every list, and a loaded engine holds millions of token ids: it takes 50 to 100 ms for a thousand
requests, several steps of a device that meanwhile has nothing to do. What an engine drops it drops by reference count;
cycles come from errors alone. So full collections wait until nothing runs.
"""

from __future__ import annotations

import gc
import time

# New objects until the youngest generation is looked at, times that until the next one, times these until all are.
THRESHOLDS = (20_000, 50, 1_000)
_SECONDS = 10.0  # between two full collections at least


def settle() -> None:
    """What is here now stays: nobody needs to look through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


class IdleCollector:
    """Full collections while nothing runs, if something ran since the last."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._worked = False

    def look(self, *, busy: bool) -> None:
        """Said once a step: whether anything runs."""
        if busy:
            self._worked = True
        elif self._worked and time.monotonic() - self._last > _SECONDS:
            gc.collect()
            self._last, self._worked = time.monotonic(), False
