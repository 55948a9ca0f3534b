"""Compile processes: verdicts as in this process, limits that end in a refusal, and a worker that is gone costs nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from runtime.api import Constraint
from runtime.config import embedded_model_path
from runtime.constrain.compiler import ConstraintCompiler
from runtime.constrain.workers import CompileWorkers, Setup, verdict_of
from runtime.errors import EngineError, InvalidRequest, Overloaded
from runtime.tokenizer.tokenizer import Tokenizer

FOLDER = embedded_model_path()
ENDS = Tokenizer(FOLDER).ends
SLOW = Constraint("regex", r"[\s\S]{60000}")
FINE = Constraint("regex", "[0-9]{3}")


def setup(**limits: float) -> Setup:
    return Setup(str(FOLDER), ENDS, **limits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def workers() -> Iterator[CompileWorkers]:
    with closing(CompileWorkers(setup(seconds=60), count=1)) as made:
        yield made


def told(check: Callable[[], object]) -> str | None:
    try:
        check()
    except InvalidRequest as error:
        return f"{error.param}: {error.message}"
    return None


@pytest.mark.parametrize(
    "constraint",
    [
        FINE,
        Constraint("regex", "(?=a)b"),
        Constraint("regex", r"[^\s\S]"),
        Constraint("regex", "(" * 5000),
        Constraint("json_schema", '{"enum": ["red", "green"]}'),
        Constraint("json_schema", '{"$ref": "#"}'),
        Constraint("json_schema", "{"),
        Constraint("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000),
        Constraint("ebnf", "root ::= 'a'"),
    ],
    ids=lambda c: c.source[:12],
)
def test_verdicts_are_those_of_a_compile_in_this_process(
    workers: CompileWorkers, constraint: Constraint
) -> None:
    compiler = ConstraintCompiler(FOLDER, ENDS)
    for budget in (None, 0, 1, 2, 50):
        there = told(lambda budget=budget: asyncio.run(workers.check(constraint, budget)))  # type: ignore[misc]
        here = told(lambda budget=budget: compiler.check(constraint, budget))  # type: ignore[misc]
        assert there == here


def test_what_takes_too_long_is_refused_and_the_next_one_served() -> None:
    with closing(CompileWorkers(setup(seconds=1), count=1)) as workers:
        for _ in range(2):  # the second time from memory
            with pytest.raises(InvalidRequest, match=r"takes longer than 1 s .*--constraint-compile-seconds"):
                asyncio.run(workers.check(SLOW, None))
        asyncio.run(workers.check(FINE, None))


def test_what_takes_too_much_memory_is_refused_and_the_next_one_served() -> None:
    large = Constraint("regex", "(.{0,200}){50}|(b{0,90}){90}")
    limited = CompileWorkers(setup(seconds=60, memory_mb=1), count=1)
    message = r"needs more than 1 MiB .*--constraint-compile-memory-mb"
    with closing(limited), pytest.raises(InvalidRequest, match=message):
        asyncio.run(limited.check(large, None))
    with closing(CompileWorkers(setup(seconds=60), count=1)) as workers:
        asyncio.run(workers.check(large, None))


def test_a_worker_that_was_killed_is_started_again(workers: CompileWorkers) -> None:
    asyncio.run(workers.check(FINE, None))
    child = workers._all[0]._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    asyncio.run(workers.check(Constraint("regex", "b+"), None))


def test_callers_of_one_constraint_share_its_compile_and_more_are_refused() -> None:
    async def many(workers: CompileWorkers) -> list[EngineError | None]:
        asked = [SLOW] * 5 + [Constraint("regex", f"a{{{n}}}") for n in range(1, 5)]
        found = await asyncio.gather(*(workers.check(c, None) for c in asked), return_exceptions=True)
        return found  # type: ignore[return-value]

    with closing(CompileWorkers(setup(seconds=2), count=1, waiting=3, patience=300)) as workers:
        found = asyncio.run(many(workers))
    assert all(isinstance(e, InvalidRequest) for e in found[:5])
    assert found[5:7] == [None, None] and all(isinstance(e, Overloaded) for e in found[7:])


def test_nobody_waits_longer_than_patience() -> None:
    async def behind(workers: CompileWorkers) -> None:
        first = asyncio.ensure_future(workers.check(SLOW, None))
        while not workers._all:  # until the only worker has it
            await asyncio.sleep(0.01)
        workers.patience = 0.01
        with pytest.raises(Overloaded, match=r"waited 0\.01 s"):
            await workers.check(FINE, None)
        with pytest.raises(InvalidRequest):
            await first

    with closing(CompileWorkers(setup(seconds=1), count=1)) as workers:
        asyncio.run(behind(workers))


async def test_nobody_waits_for_what_nobody_asks() -> None:
    """A queue of two: what was left by its callers takes no place in it, and what one of two left stays."""
    with closing(CompileWorkers(setup(seconds=60), count=1, waiting=2)) as workers:
        begun = asyncio.create_task(workers.check(SLOW, None))
        await asyncio.sleep(0.1)
        for number in range(3):
            left = asyncio.create_task(workers.check(Constraint("regex", f"[0-9]{{{number + 4}}}"), None))
            await asyncio.sleep(0.05)
            assert not left.done()
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
        one, two = (asyncio.create_task(workers.check(FINE, None)) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            await workers.check(Constraint("regex", "x"), None)
        assert not two.done()
        begun.cancel()
        two.cancel()


def test_a_mistake_of_the_compiler_is_not_told_as_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such state")

    monkeypatch.setattr(ConstraintCompiler, "get", fail)
    verdict = verdict_of(ConstraintCompiler(FOLDER, ENDS), FINE)
    assert verdict.param == "regex" and "failed on it (ValueError: no such state)" in (verdict.refused or "")
