"""Requests of every kind are given up at every moment, and nothing is left behind. The full storm is benchmarks/soak.py."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.traffic import settled, storm
from runtime.server.launch import ServerProcess
from tests.server.calls import call


@pytest.mark.parametrize("seed", [1])
def test_aborted_requests_leave_nothing_behind(server: ServerProcess, seed: int) -> None:
    greedy = {
        "text": "The capital of Peru is",
        "sampling_params": {"temperature": 0, "max_new_tokens": 12},
    }
    before = call(f"{server.url}/generate", greedy)[1]["text"]
    files = settled(server.url)["files"]
    tally = asyncio.run(storm(server.url, 500, 24, seed))
    assert not tally.wrong and tally.counts["aborted"] > 250
    found = settled(server.url)
    assert found["problem"] is None
    assert found["kv_cache"]["used_tokens"] == found["num_running_reqs"] == found["num_waiting_reqs"] == 0
    assert found["files"] <= files + 20
    assert call(f"{server.url}/generate", greedy)[1]["text"] == before
    assert call(f"{server.url}/flush_cache", method="POST")[1] == {"flushed": True}
    found = settled(server.url)
    assert (found["problem"], found["nodes"], found["kv_cache"]["cached_tokens"]) == (None, 0, 0)
