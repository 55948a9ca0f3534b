"""Constraints that are made to take for ever hold up their caller alone. A third of them here; all, with the usual limits
and 2,000 harmless ones after them, in benchmarks/hostile_grammars.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.hostile_grammars import EBNFS, REGEXES, SCHEMAS, bombard, bombs
from benchmarks.traffic import settled
from runtime.server.launch import ServerProcess


@pytest.fixture()
def guarded() -> Iterator[ServerProcess]:
    server = ServerProcess(constraint_compile_seconds=1, constraint_compile_memory_mb=512, threads=1)
    yield server
    server.shutdown()


def test_bombs_hold_up_their_caller_alone(guarded: ServerProcess) -> None:
    assert (len(REGEXES), len(SCHEMAS), len(EBNFS)) == (18, 22, 17)
    found = asyncio.run(bombard(guarded.url, bombs()[::3]))
    assert not found.wrong
    assert sum(found.statuses.values()) == 19 and found.statuses[400] > 5 and found.beside > 5
    assert found.slowest[0] < 30 and found.plain < 5 and found.health < 2
    assert settled(guarded.url)["problem"] is None
