"""Full collections of an engine's process come while nothing runs, and never in a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from runtime.engine import collector
from runtime.engine.collector import IdleCollector, settle


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_work_causes_no_full_collection() -> None:
    settle()
    before = gc.get_stats()[2]["collections"]
    kept = [[i] for i in range(400_000)]
    assert gc.get_stats()[2]["collections"] == before and len(kept) == 400_000
    assert gc.get_stats()[0]["collections"] > 0


def test_a_cycle_goes_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(collector.time, "monotonic", lambda: now[0])
    looked: list[float] = []
    monkeypatch.setattr(collector.gc, "collect", lambda: looked.append(now[0]))
    idle = IdleCollector()
    for seconds, busy in (
        (1, False),
        (20, False),
        (1, True),
        (1, False),
        (30, False),
        (40, True),
        (1, False),
    ):
        now[0] += seconds
        idle.look(busy=busy)
    assert looked == [123.0, 194.0]  # not before anything ran; once after it; not within ten seconds
