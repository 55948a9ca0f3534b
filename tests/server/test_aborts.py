"""Requests of every kind are given up at every moment, and nothing is left behind. The full storm is benchmarks/soak.py."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import aiohttp
import pytest
from tests.server.calls import call

from runtime.server.launch import ServerProcess

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


def bodies(rng: random.Random, i: int) -> tuple[str, dict[str, Any]]:
    """A route and a request that would run for long."""
    text = f"Count to a hundred, starting at {rng.randint(0, 9)}: " + "1, 2, 3, " * rng.randint(0, 60)
    params: dict[str, Any] = {"max_new_tokens": 2000, "ignore_eos": True}
    kind = i % 6
    if kind == 0:
        return "/generate", {"text": text, "sampling_params": params, "stream": True}
    if kind == 1:
        return "/generate", {"text": text, "sampling_params": {**params, "n": 4}}
    if kind == 2:
        return "/generate", {"text": [text, text[::-1]], "sampling_params": params, "return_logprob": True}
    if kind == 3:
        return "/v1/completions", {"prompt": text, "max_tokens": 2000, "stream": True, "cache_salt": f"s{i}"}
    if kind == 4:
        constrained = {"max_new_tokens": 200, "regex": f"[a-z]{{100,150}}{i}"}  # not compiled before
        return "/generate", {"text": text, "sampling_params": constrained}
    messages = [{"role": "user", "content": text}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": 2000, "stream": True}


async def storm(url: str, count: int, at_once: int, seed: int) -> int:
    """Start `count` requests and leave each after a random moment; how many had answered before."""
    rng = random.Random(seed)
    gate = asyncio.Semaphore(at_once)
    early = 0

    async def one(i: int) -> None:
        nonlocal early
        path, body = bodies(rng, i)
        patience = rng.choice([0.0, 0.002, 0.02, 0.1, 0.4]) * rng.random()
        async with gate:
            try:
                async with (
                    asyncio.timeout(patience),
                    aiohttp.ClientSession() as session,
                    session.post(url + path, json=body) as answer,
                ):
                    assert answer.status in (200, 429, 503)
                    await answer.read()
                    early += 1
            except (TimeoutError, aiohttp.ClientError):
                pass

    await asyncio.gather(*(one(i) for i in range(count)))
    return early


def settled(url: str, seconds: float = 20) -> dict[str, Any]:
    """The walk over all that is held, once nothing runs."""
    end = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = call(f"{url}/debug/check")[1]
        if found["idle"] and found["calls"] == found["admitted"] == 0:
            return found
        assert time.monotonic() < end, f"still held: {found}"
        time.sleep(0.05)


@pytest.mark.parametrize("seed", [1])
def test_aborted_requests_leave_nothing_behind(server: ServerProcess, seed: int) -> None:
    greedy = {
        "text": "The capital of Peru is",
        "sampling_params": {"temperature": 0, "max_new_tokens": 12},
    }
    before = call(f"{server.url}/generate", greedy)[1]["text"]
    files = settled(server.url)["files"]
    early = asyncio.run(storm(server.url, 500, 24, seed))
    assert early < 250
    found = settled(server.url)
    assert found["problem"] is None
    assert found["kv_cache"]["used_tokens"] == found["num_running_reqs"] == found["num_waiting_reqs"] == 0
    assert found["files"] <= files + 20
    assert call(f"{server.url}/generate", greedy)[1]["text"] == before
    assert call(f"{server.url}/flush_cache", method="POST")[1] == {"flushed": True}
    found = settled(server.url)
    assert (found["problem"], found["nodes"], found["kv_cache"]["cached_tokens"]) == (None, 0, 0)
