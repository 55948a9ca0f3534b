"""Turns grow while the host is what a device waits for, and shrink when it is not."""

from __future__ import annotations

import pytest

from runtime.engine.turns import TurnLength


def settle(turns: TurnLength, host: float, device: float, rounds: int = 200) -> int:
    """Steps after many turns on a machine whose host takes `host` seconds a turn and device `device` a step."""
    for _ in range(rounds):
        work = turns.steps * device
        took = max(host, work)
        turns.observe(turns.steps, took, took - host)
    return turns.steps


@pytest.mark.parametrize(
    ("host", "device", "steps"),
    [
        (0.0005, 0.0045, 1),  # a large model
        (0.0010, 0.0005, 4),  # a small one
        (0.0030, 0.0018, 4),
        (0.0010, 0.0010, 2),
        (0.0020, 0.0001, 16),
        (0.0400, 0.0200, 1),  # no turn gets longer than callers should wait
    ],
)
def test_steps_by_what_host_and_device_take(host: float, device: float, steps: int) -> None:
    assert settle(TurnLength(None), host, device) == steps


def test_turns_shrink_again_when_the_device_has_more_to_do() -> None:
    turns = TurnLength(None)
    assert settle(turns, 0.002, 0.0003) == 16
    assert settle(turns, 0.002, 0.004) == 2
    assert settle(turns, 0.0005, 0.004) == 1


def test_a_number_that_was_asked_for_stays() -> None:
    turns = TurnLength(5)
    assert settle(turns, 0.1, 0.001) == 5 == settle(turns, 0.001, 0.1)


def test_other_turns_tell_nothing() -> None:
    turns = TurnLength(None)
    for _ in range(50):
        turns.observe(3, 1.0, 0.0)
    assert turns.steps == 1
