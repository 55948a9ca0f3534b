"""Hundreds of streams at once: each is answered whole or refused with Retry-After. The long version is
benchmarks/serving_load.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from benchmarks.serving_load import stream
from benchmarks.traffic import Tally, Watch, settled
from runtime.server.launch import ServerProcess

STREAMS = 300


async def all_at_once(url: str, tokens: int) -> Tally:
    tally = Tally()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        each = (stream(session, url, f"Number {i % 7} is", tokens, tally) for i in range(STREAMS))
        await asyncio.gather(*each)
    return tally


def test_hundreds_of_streams_are_all_answered(server: ServerProcess) -> None:
    with Watch(server.url, server.pid) as watch:
        tally = asyncio.run(all_at_once(server.url, 3))
    assert not tally.wrong and not watch.unwell
    assert tally.counts["answered"] == STREAMS and tally.tokens == 3 * STREAMS
    found = settled(server.url)
    assert found["problem"] is None and found["kv_cache"]["used_tokens"] == 0


@pytest.fixture()
def narrow() -> Iterator[ServerProcess]:
    server = ServerProcess(max_running_requests=2, max_queued_requests=20)
    yield server
    server.shutdown()


def test_more_than_may_wait_is_refused_with_a_time(narrow: ServerProcess) -> None:
    tally = asyncio.run(all_at_once(narrow.url, 8))
    assert not tally.wrong
    assert tally.counts["answered"] + tally.counts["refused"] == STREAMS
    assert tally.counts["answered"] >= 22 and tally.counts["refused"] > 0
    assert settled(narrow.url)["problem"] is None
