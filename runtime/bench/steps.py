"""What host and device did in each turn of an engine loop: two lanes of a Chrome trace, and sums by kind of turn.

While a `StepTrace` is open the loop's scheduler and runner call through it, so that a loop that nobody watches pays nothing.
On a CUDA device the device's lane comes from events in its stream, which make nobody wait; elsewhere the device
works while the host runs the model, and its lane shows that.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from runtime.batch import Batch
from runtime.chrome_trace import ChromeTrace
from runtime.engine.device import DeviceRunner
from runtime.engine.loop import EngineLoop

HOST, DEVICE = 1, 2


@dataclass(frozen=True)
class Turn:
    """One batch. `began` and `ended`: seconds on the device's lane, since the trace began; None until they are known."""

    rows: int  # that decode
    prompts: int  # tokens of prompts
    steps: int
    began: float
    ended: float

    @property
    def name(self) -> str:
        parts = [f"prefill {self.prompts}"] if self.prompts else []
        parts += [f"decode {self.rows}" + (f" x {self.steps}" if self.steps > 1 else "")] if self.rows else []
        return " + ".join(parts)


class StepTrace:
    """A context in which the turns of `loop` are recorded; `turns` and `trace` can be read after it."""

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self.trace = ChromeTrace("step")
        self.turns: list[Turn] = []
        self.waits = 0  # times that queueing a batch made the host wait for the device
        self._ahead = isinstance(loop.runner, DeviceRunner)
        self._cuda = loop.device.startswith("cuda")
        # Numbers and events; batches that are kept would be the collector's to look through.
        self._queued: list[tuple[int, int, int, Any, Any]] = []
        self._depth = 0
        self._restore: list[tuple[Any, str]] = []
        self._zero: Any = None
        self._began = 0.0

    def __enter__(self) -> StepTrace:
        self.trace.lane(HOST, "host")
        self.trace.lane(DEVICE, "device")
        self._zero = self._event()
        if self._cuda:
            torch.cuda.synchronize()
        self._began = time.perf_counter()
        self._through(self.loop.scheduler, "next_batch", self._plain("plan"))
        self._through(self.loop.scheduler, "commit", self._plain("book"))
        if self._ahead:
            self._through(self.loop.runner, "launch", self._queue)
            self._through(self.loop.runner, "draw", self._draw)
            self._through(self.loop.runner, "collect", self._read)
        else:
            self._through(self.loop.runner, "run", self._queue)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name in self._restore:
            delattr(owner, name)  # the class's own shows again
        if kind is not None:
            return
        if self._cuda:
            torch.cuda.synchronize()
        for rows, prompts, steps, start, end in self._queued:
            turn = Turn(rows, prompts, steps, self._at(start), self._at(end))
            self.turns.append(turn)
            facts = {"rows": rows, "prompt_tokens": prompts, "steps": steps}
            self.trace.span(DEVICE, turn.name, turn.began, turn.ended, facts)

    def _through(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        setattr(owner, name, wrap(getattr(owner, name)))
        self._restore.append((owner, name))

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _event(self) -> Any:
        """A moment on the device's lane."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _at(self, event: Any) -> float:
        if not self._cuda:
            return float(event) - self._began
        return float(self._zero.elapsed_time(event)) / 1e3

    def _plain(self, name: str) -> Callable[[Any], Any]:
        def wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                start = self._now()
                result = inner(*args)
                self.trace.span(HOST, name, start, self._now())
                return result

            return call

        return wrap

    def _queue(self, inner: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        """Around what gives a batch to the device. A turn that is run step by step calls it again, inside."""
        name = "queue" if self._ahead else "run"

        def call(batch: Batch) -> Any:
            if self._depth:
                return inner(batch)
            start, first = self._now(), self._event()
            self._depth += 1
            try:
                with self._noticing():
                    result = inner(batch)
            finally:
                self._depth -= 1
            prompts = sum(len(s.tokens) for s in batch.slices)
            rows = sum(not s.tokens for s in batch.slices)
            self._queued.append((rows, prompts, batch.steps, first, self._event()))
            self.trace.span(HOST, name, start, self._now(), {"rows": len(batch.slices), "steps": batch.steps})
            return result

        return call

    def _draw(self, inner: Callable[[Any], None]) -> Callable[[Any], None]:
        """Around what queues the rest of a batch: the newest turn lasts until that is done."""

        def call(pending: Any) -> None:
            if self._depth or not (pending.held or pending.one_by_one):
                return inner(pending)
            start = self._now()
            self._depth += 1
            try:
                inner(pending)
            finally:
                self._depth -= 1
            self._queued[-1] = (*self._queued[-1][:4], self._event())
            self.trace.span(HOST, "draw", start, self._now())

        return call

    def _read(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(pending: Any) -> Any:
            if self._depth:
                return inner(pending)
            runner: Any = self.loop.runner
            start, waited = self._now(), runner.waited
            result = inner(pending)
            self.trace.span(HOST, "read", start, self._now())
            if (took := runner.waited - waited) > 0:
                self.trace.span(HOST, "wait for the device", start, start + took)
            return result

        return call

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Mark what makes the host wait for the device where it should only queue."""
        if not self._cuda:
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in found:
            if "called a synchronizing" in str(warning.message):
                self.waits += 1
                self.trace.mark(HOST, "the host waits for the device", self._now())

    def shares(self) -> list[dict[str, Any]]:
        """Where the time went: the device's seconds by what was in the batch; `idle` is what lay between two batches."""
        found: dict[str, list[float]] = {}
        last = self.turns[0].began if self.turns else 0.0
        idle = 0.0
        for turn in self.turns:
            most = next((m for m in (1, 16, 64, 128, 256, 512) if turn.rows <= m), None)
            rows = "more rows" if most is None else f"to {most} rows" if most > 1 else "1 row"
            sums = found.setdefault("with prompts" if turn.prompts else rows, [0, 0, 0, 0, 0.0])
            took = max(turn.ended - max(turn.began, last), 0.0)
            for i, value in enumerate((1, turn.steps, turn.rows, turn.prompts, took)):
                sums[i] += value
            idle += max(turn.began - last, 0.0)
            last = max(last, turn.ended)
        shares = [
            {"kind": k, "turns": n, "steps": steps, "rows": rows / n, "prompt_tokens": p, "s": round(s, 4)}
            for k, (n, steps, rows, p, s) in sorted(found.items())
        ]
        return [*shares, {"kind": "idle", "s": round(idle, 4)}]

    def gaps(self, most: int = 8) -> list[dict[str, Any]]:
        """The longest times in which the device had nothing to do, in order: when, before which turn, and the host's milliseconds
        in them by what it did."""
        found: list[tuple[float, float, str]] = []
        last = self.turns[0].began if self.turns else 0.0
        for turn in self.turns:
            if turn.began > last:
                found.append((last, turn.began, turn.name))
            last = max(last, turn.ended)
        longest = sorted(sorted(found, key=lambda gap: gap[0] - gap[1])[:most])
        spans = [e for e in self.trace.events if e["ph"] == "X" and e["tid"] == HOST]
        gaps = []
        for began, ended, name in longest:
            host: dict[str, float] = {}
            for e in spans:
                start, length = e["ts"] / 1e6, e["dur"] / 1e6
                if (both := min(ended, start + length) - max(began, start)) > 0:
                    host[e["name"]] = round(host.get(e["name"], 0.0) + both * 1e3, 2)
            gaps.append(
                {"at": round(began, 4), "ms": round((ended - began) * 1e3, 2), "before": name, "host": host}
            )
        return gaps
