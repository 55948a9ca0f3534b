"""A trace of a device that works ahead, with a stand-in for its clock: what is nested, what waits, what lies between."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.batch import Batch, Sampled, Slice
from runtime.bench.steps import DEVICE, HOST, StepTrace, Turn
from runtime.chrome_trace import ChromeTrace
from runtime.engine.device import DeviceRunner
from runtime.engine.pending import Pending


class Event:
    """Recorded events are 10 ms apart."""

    count = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1

    def record(self) -> None:
        Event.count += 1
        self.at = Event.count

    def elapsed_time(self, other: Event) -> float:
        assert self.at > 0 and other.at > 0
        return (other.at - self.at) * 10.0


class Runner(DeviceRunner):
    """Queues a turn step by step, waits for a second when it reads, and once makes the host wait."""

    def __init__(self) -> None:
        self.waited = 0.0

    def launch(self, batch: Batch) -> Pending:
        if batch.steps > 1:
            return Pending(batch, one_by_one=True)
        if batch.slices[0].tokens:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return Pending(batch)

    def draw(self, pending: Pending) -> None:
        if pending.one_by_one:
            pending.one_by_one = False
            done = [self.collect(self.launch(one)) for one in pending.batch.singles()]
            pending.done = Sampled.of_turn(pending.batch, done)

    def collect(self, pending: Pending) -> Sampled:
        self.draw(pending)
        if pending.done is None:
            self.waited += 1.0
        return pending.done or Sampled(pending.batch.step, [7] * len(pending.batch.slices))


class Scheduler:
    def next_batch(self) -> None: ...

    def commit(self, sampled: Sampled) -> None: ...


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    modes = ["default"]

    def mode(name: str) -> None:
        warnings.warn("debug mode does not yet detect all synchronizing operations", stacklevel=1)
        modes.append(name)

    Event.count = 0
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    yield SimpleNamespace(device="cuda", scheduler=Scheduler(), runner=Runner())
    assert modes[-1] == "default"


PROMPT = Batch(1, [Slice(0, 0, [1, 2, 3], [], True)])
DECODE = Batch(2, [Slice(0, 3, [], [], True)])
TURN = Batch(3, [Slice(0, 4, [], [], True, steps=2), Slice(1, 4, [], [], True, steps=2)])


def spans(trace: StepTrace, lane: int) -> list[str]:
    return [e["name"] for e in trace.trace.events if e["ph"] == "X" and e["tid"] == lane]


def test_a_turn_that_is_run_step_by_step_is_one_span(loop: Any) -> None:
    with StepTrace(loop) as steps:
        turn = loop.runner.launch(TURN)
        loop.runner.draw(turn)
        loop.runner.collect(turn)
    assert spans(steps, HOST) == ["queue", "draw", "read"]
    assert spans(steps, DEVICE) == ["decode 2 x 2"]
    assert steps.turns == [Turn(2, 0, 2, pytest.approx(0.01), pytest.approx(0.03))], (
        "it lasts until all is drawn"
    )


def test_waiting_is_seen(loop: Any) -> None:
    with StepTrace(loop) as steps:
        first = loop.runner.launch(PROMPT)
        second = loop.runner.launch(DECODE)
        loop.runner.collect(first)
        loop.runner.collect(second)
    assert spans(steps, HOST) == [
        "queue",
        "queue",
        "read",
        "wait for the device",
        "read",
        "wait for the device",
    ]
    marks = [e["name"] for e in steps.trace.events if e["ph"] == "i"]
    assert marks == ["the host waits for the device"] and steps.waits == 1


def test_what_lies_between_two_batches_is_idle(loop: Any) -> None:
    with StepTrace(loop) as steps:
        loop.runner.launch(PROMPT)  # from 10 ms to 20
        Event.count += 3
        loop.runner.launch(DECODE)  # from 60 to 70
    shares = {s["kind"]: s["s"] for s in steps.shares()}
    assert shares == {
        "with prompts": pytest.approx(0.01),
        "1 row": pytest.approx(0.01),
        "idle": pytest.approx(0.04),
    }


def test_the_loop_is_left_as_it_was(loop: Any) -> None:
    with pytest.raises(KeyError), StepTrace(loop):
        assert {*vars(loop.scheduler)} == {"next_batch", "commit"}
        raise KeyError
    assert not vars(loop.scheduler) and {*vars(loop.runner)} == {"waited"}


def test_gaps_say_what_the_host_did_in_them() -> None:
    steps = StepTrace.__new__(StepTrace)
    steps.trace = ChromeTrace("step")
    steps.turns = [
        Turn(4, 0, 1, 1.0, 1.5), Turn(4, 0, 1, 1.5, 2.0), Turn(0, 9, 1, 2.25, 3.0), Turn(5, 0, 1, 3.001, 4.0),
    ]  # fmt: skip
    steps.trace.span(HOST, "plan", 1.9, 2.1)
    steps.trace.span(HOST, "book", 2.1, 2.2)
    steps.trace.span(DEVICE, "decode 4", 1.5, 2.1)
    first, second = steps.gaps()
    assert first == {"at": 2.0, "ms": 250.0, "before": "prefill 9", "host": {"plan": 100.0, "book": 100.0}}
    assert (second["ms"], second["before"], second["host"]) == (1.0, "decode 5", {})
    assert steps.gaps(1) == [first]
