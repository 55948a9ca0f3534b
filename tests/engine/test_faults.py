"""A failure is the end of the requests that it meets, of nobody else, and nothing of it is found by others later."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from runtime.api import Constraint, SamplingParams
from runtime.config import EngineConfig
from runtime.engine.faults import Fault
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Add, Answer, Ask, Output, Refused
from runtime.errors import EngineDead

PROMPT = [70, 80, 90, 100, 110, 120, 130, 140]


@pytest.fixture(scope="module", params=[1, 4], ids=["pages of 1", "pages of 4"])
def loop(request: pytest.FixtureRequest) -> EngineLoop:
    return EngineLoop(
        EngineConfig(
            debug_faults=True, page_size=request.param, max_total_tokens=2000, device="cpu", threads=1
        )
    )


def fault(loop: EngineLoop, **fields: Any) -> None:
    (answer,) = loop.handle(Ask(1, "fault", msgspec.json.encode(Fault(**fields)).decode()))
    assert isinstance(answer, Answer) and not answer.code


def add(loop: EngineLoop, id: str, tokens: list[int], new: int = 12) -> list[Any]:
    return loop.handle(Add(id, tokens, SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True), 0))


def finish(loop: EngineLoop, *, after: int = 0) -> dict[str, tuple[list[int], Any]]:
    """Tokens and end of each request, once all have ended, or after some steps."""
    found: dict[str, tuple[list[int], Any]] = {}
    steps = 0
    while loop.busy and (not after or steps < after):
        steps += 1
        for m in loop.step():
            assert isinstance(m, Output)
            before, _ = found.get(m.id, ([], None))
            found[m.id] = (before + m.tokens, m.finish)
    return found


def alone(loop: EngineLoop, tokens: list[int]) -> list[int]:
    add(loop, "alone", tokens)
    return finish(loop)["alone"][0]


class Lost(RuntimeError):
    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.error_code = code


def test_a_device_that_is_lost_ends_the_engine_and_a_lack_of_memory_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = EngineLoop(EngineConfig(max_total_tokens=500, device="cpu", threads=1))
    monkeypatch.setattr("runtime.engine.loop._DEVICE_ERROR", Lost)
    run = loop.runner.run

    def fails(code: int) -> None:
        def broken(batch: Any) -> Any:
            raise Lost(code)

        monkeypatch.setattr(loop.runner, "run", broken)

    add(loop, "first", PROMPT)
    fails(2)
    assert finish(loop)["first"][1].type == "error"
    monkeypatch.setattr(loop.runner, "run", run)
    assert len(alone(loop, PROMPT)) == 12
    add(loop, "second", PROMPT)
    fails(700)
    with pytest.raises(EngineDead, match="CUDA error 700"):
        loop.step()


def test_nan_ends_one_request_and_is_not_cached(loop: EngineLoop) -> None:
    bad = [*PROMPT[:4], 200, 210, 220, 230, 240, 250, 260, 270]
    expected = alone(loop, PROMPT), alone(loop, bad)
    assert loop.scheduler.flush()
    add(loop, "good", PROMPT)
    began = finish(loop, after=2)["good"][0]
    add(loop, "bad", bad)
    fault(loop, kind="nan")
    ended = finish(loop)
    assert began + ended["good"][0] == expected[0] and ended["good"][1].type == "length"
    assert ended["bad"][1].type == "error" and "not finite" in ended["bad"][1].message
    assert ended["bad"][0] == expected[1][: len(ended["bad"][0])]  # nothing was drawn from the NaN row
    loop.scheduler.check()
    tree = loop.scheduler.cache.tree
    size = loop.config.page_size
    assert tree.matched_length(bad) == 4  # what the good one computed
    assert tree.matched_length(PROMPT) == len(PROMPT) // size * size
    assert loop.stats()["kv_cache"]["used_tokens"] == 0
    assert alone(loop, bad) == expected[1]  # in the pages that were spoiled, too
    assert alone(loop, [*bad, *expected[1], 5]) and loop.scheduler.cache.used == 0


def test_what_another_reads_is_not_dropped(loop: EngineLoop) -> None:
    """Two requests of one prompt: the failing one's pages are the other's prefix."""
    loop.scheduler.flush()
    prompt = [*PROMPT, *range(300, 320)]
    expected = alone(loop, prompt)
    loop.scheduler.flush()
    add(loop, "reader", prompt, 30)
    finish(loop, after=2)
    add(loop, "bad", prompt)
    fault(loop, kind="nan")
    ended = finish(loop)
    assert ended["bad"][1].type == "error" and ended["reader"][1].type == "length"
    loop.scheduler.check()
    assert alone(loop, prompt) == expected


def test_a_failing_model_ends_its_batch_only(loop: EngineLoop) -> None:
    expected = alone(loop, PROMPT)
    fault(loop, kind="error")
    add(loop, "a", PROMPT)
    add(loop, "b", PROMPT[:5])
    ended = finish(loop)
    assert {id: end.type for id, (_, end) in ended.items()}["a"] == "error"
    loop.scheduler.check()
    assert loop.scheduler.idle and alone(loop, PROMPT) == expected


def test_a_mistake_while_a_request_is_queued_ends_that_request(
    loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = loop.scheduler.limit

    def broken(prompt: int, wanted: int | None) -> int:
        if prompt == 3:
            raise ZeroDivisionError("a mistake")
        return limit(prompt, wanted)

    monkeypatch.setattr(loop.scheduler, "limit", broken)
    add(loop, "good", PROMPT)
    (refused,) = add(loop, "bad", PROMPT[:3])
    assert isinstance(refused, Refused) and refused.code == "internal_error"
    assert "mistake" not in refused.message
    assert finish(loop)["good"][1].type == "length"


def test_without_the_option_nothing_can_be_broken() -> None:
    plain = EngineLoop(EngineConfig(max_total_tokens=100, device="cpu", threads=1))
    (answer,) = plain.handle(Ask(1, "fault", '{"kind":"die"}'))
    assert (
        isinstance(answer, Answer) and answer.code == "invalid_request" and "--debug-faults" in answer.message
    )


def test_a_constraint_that_is_ready_between_two_looks_is_not_forgotten(
    loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling ends at any moment, also while the loop goes through the requests that wait for it."""
    looks: Counter[Future[None]] = Counter()
    done = Future.done

    def late(job: Future[None]) -> bool:
        """As if every job had ended right after somebody looked."""
        looks[job] += done(job)
        return looks[job] > 1

    monkeypatch.setattr(Future, "done", late)
    wanted = {f"{i}" for i in range(20)}
    for id in wanted:
        constraint = Constraint("regex", "[a-c]{2}")
        loop.handle(Add(id, PROMPT, SamplingParams(max_new_tokens=4, constraint=constraint), 0))
    assert finish(loop).keys() == wanted
