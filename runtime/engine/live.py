"""Who runs now, and how fast answers came lately: what a person looking at the server wants to see.

The engine's facade says when a sample begins, gets tokens and ends; everything else here is arithmetic on those
moments. Calls come from two threads (the caller's loop and the transport's), so every public method locks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.metrics import Metrics

_RECENT = 4096  # moments kept of each kind; percentiles are of these
TAIL = 32  # tokens of a prompt's end that are kept for showing


@dataclass
class Running:
    """One sample that has not ended. Times are those of `time.monotonic`; `first` and `last` are its tokens'."""

    id: str
    prompt_tokens: int
    tail: tuple[int, ...]
    started: float
    limit: int | None
    tokens: int = 0
    first: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class Totals:
    """Counted since the start."""

    requests: int
    finished: int
    aborted: int
    failed: int
    prompt_tokens: int
    output_tokens: int


class Live:
    """The running samples and the latencies of the recent ones; `counted` adds up all of them."""

    def __init__(self) -> None:
        self.counted = Metrics()
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._recent: dict[str, deque[tuple[float, float]]] = {
            name: deque(maxlen=_RECENT) for name in ("first_token", "between_tokens", "whole")
        }
        self._requests = self._finished = self._aborted = self._failed = 0
        self._prompt_tokens = self._output_tokens = 0

    def begin(self, id: str, prompt: Sequence[int], limit: int | None) -> None:
        """A sample was sent to the loop; `limit` is what its caller allows it."""
        with self._lock:
            self._requests += 1
            self._prompt_tokens += len(prompt)
            self._running[id] = Running(id, len(prompt), tuple(prompt[-TAIL:]), time.monotonic(), limit)

    def outputs(self, arrived: Iterable[tuple[str, int]]) -> None:
        """New tokens arrived at once: so many for each of these samples."""
        now = time.monotonic()
        first, between = self._recent["first_token"], self._recent["between_tokens"]
        with self._lock:
            for id, tokens in arrived:
                seen = self._running.get(id)
                if seen is None or not tokens:
                    continue
                self._output_tokens += tokens
                if seen.last is None:
                    seen.first = now
                    first.append((now, now - seen.started))
                    self.counted.first_token.observe(now - seen.started)
                else:
                    each = (now - seen.last) / tokens
                    between.append((now, each))
                    self.counted.between_tokens.observe(each, tokens)
                seen.last = now
                seen.tokens += tokens

    def end(self, id: str, reason: str, cached: int = 0) -> None:
        """A sample is over, for a `Finish.type`, with so many prompt tokens from the cache; the second time, or for one not known, nothing happens."""
        now = time.monotonic()
        with self._lock:
            seen = self._running.pop(id, None)
            if seen is None:
                return
            self.counted.end(reason, seen.prompt_tokens, seen.tokens, cached)
            self.counted.whole.observe(now - seen.started)
            if reason == "abort":
                self._aborted += 1
            elif reason == "error":
                self._failed += 1
            else:
                self._finished += 1
                self._recent["whole"].append((now, now - seen.started))

    def running(self) -> list[Running]:
        """The samples that run, oldest first; these are copies."""
        with self._lock:
            return [Running(**vars(r)) for r in self._running.values()]

    def totals(self) -> Totals:
        with self._lock:
            return Totals(
                self._requests,
                self._finished,
                self._aborted,
                self._failed,
                self._prompt_tokens,
                self._output_tokens,
            )

    def percentiles(self, seconds: float) -> dict[str, dict[str, float] | None]:
        """p50, p90 and p99, in seconds, of what happened in the last `seconds`; None where nothing did."""
        since = time.monotonic() - seconds
        with self._lock:
            kinds = {
                name: sorted(v for at, v in moments if at >= since) for name, moments in self._recent.items()
            }
        return {name: _quantiles(values) if values else None for name, values in kinds.items()}


def _quantiles(ordered: list[float]) -> dict[str, float]:
    """Nearest-rank percentiles of sorted values."""
    return {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
