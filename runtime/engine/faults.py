"""Failures on purpose, for tests of what a server does when its parts fail. Only with --debug-faults.

Each fault strikes between the engine loop and its runner, so the loop has no code for it and no cost without it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from runtime.batch import Batch

if TYPE_CHECKING:  # the HTTP process knows faults by name, and needs no torch
    from runtime.engine.runner import ModelRunner


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to go wrong.

    nan    the KV memory of the request that came last turns to NaN, and so do its logits
    error  the model fails on the next batch
    slow   each of the next `steps` batches computes for `seconds` more
    hang   the next batch never ends
    die    the process ends at the next batch
    """

    kind: Literal["nan", "error", "slow", "hang", "die"]
    seconds: float = 1.0
    steps: int = 1


class Faults:
    """Wraps the way of a runner to its batches."""

    def __init__(self, runner: ModelRunner, entry: str) -> None:
        """`entry` names the method that is given each batch."""
        self._runner = runner
        self._next: list[Fault] = []
        self._came: dict[int, int] = {}  # seats of requests that run, by when they came
        self._count = 0
        run = getattr(runner, entry)

        def faulty(batch: Batch) -> object:
            self._strike(batch)
            return run(batch)

        setattr(runner, entry, faulty)

    def add(self, fault: Fault) -> None:
        """Let it happen as soon as it can."""
        self._next += [fault] * (fault.steps if fault.kind == "slow" else 1)

    def _strike(self, batch: Batch) -> None:
        for seat in batch.released:
            self._came.pop(seat, None)
        for a in batch.admitted:
            self._count += 1
            self._came[a.seat] = self._count
        if not self._next:
            return
        fault = self._next[0]
        if fault.kind == "nan" and not self._spoil(batch):
            return  # it has no memory of its own yet
        self._next.pop(0)
        if fault.kind == "slow":
            end = time.monotonic() + fault.seconds
            while time.monotonic() < end:  # a slow step computes; one that hangs does not
                pass
        elif fault.kind == "error":
            raise RuntimeError("a fault was asked for")
        elif fault.kind == "die":
            os._exit(70)
        elif fault.kind == "hang":
            while True:
                time.sleep(3600)

    def _spoil(self, batch: Batch) -> bool:
        """NaN at the newest position of the request that came last: an output's, which no other request reads."""
        seat = max(self._came, key=lambda seat: self._came[seat], default=-1)
        last = next((s for s in batch.slices if s.seat == seat), None)
        if last is None or last.tokens or last.output < 2:
            return False
        slot = int(self._runner.slots(last.seat, last.start)[-1])
        self._runner.store.v[:, slot] = float("nan")
        return True
