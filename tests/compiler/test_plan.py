"""Plans: JSON and back, what is refused, bounds, and how they are walked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

import sglc as sgl
from runtime.api import Delta, Generate, render
from runtime.errors import InvalidRequest
from runtime.plan import Compute, Const, Decode, Plan, Prefix, Ref
from runtime.plan_bounds import bounds_of
from runtime.plan_verify import verify
from sglc.errors import PlanError
from sglc.ir.analysis import chain, critical_path, definitions, dependencies, shared_prefixes, users
from sglc.ir.ops import Begin, Gen
from sglc.lang.chat_template import get_chat_template
from sglc.passes.pipeline import Pipeline
from sglc.plan.lower import lower
from sglc.plan.render import from_json, to_dot, to_json, to_text

SAME_CALLS = "canonicalize,merge-forks,hoist-prefix,canonicalize"  # without passes that leave calls out


@sgl.function
def tips(s, topic, count=2):
    s += sgl.system("Tips.") + sgl.user("About " + topic)
    forks = s.fork(count)
    for i, f in enumerate(forks):
        f += sgl.assistant_begin() + f"Tip {i}: " + sgl.gen("tip", max_tokens=7)
        f += " Why? " + sgl.gen("why", max_tokens=5, n=2)
    s += sgl.assistant("All: " + " ".join([f["tip"] for f in forks]) + sgl.gen("end"))


def plan_of(program: Any, **constants: Any) -> Plan:
    module = Pipeline.parse(SAME_CALLS).run(program.trace(**constants), verify=True)
    return lower(module, get_chat_template("chatml"))


def test_json_and_back() -> None:
    plan = plan_of(tips)
    verify(plan)
    assert from_json(to_json(plan)) == plan
    assert to_dot(plan).count("shape=box") == 5
    assert "5 calls" in to_text(plan)


def test_bounds_hold() -> None:
    bounds = bounds_of(plan_of(tips), max_tokens=11)
    assert (bounds.calls, bounds.tokens) == (5, 2 * 7 + 2 * 2 * 5 + 11)
    asked = sgl.Scripted()
    tips.compile(passes=SAME_CALLS).run("tea", backend=asked, max_new_tokens=11).sync()
    assert len(asked.calls) == bounds.calls
    assert bounds_of(plan_of(tips), max_tokens=None).tokens is None


def test_prefixes_know_their_uses() -> None:
    plan = plan_of(tips, count=3)
    prefills = [s for s in plan.steps if type(s).__name__ == "Prefill"]
    assert prefills and all(plan.prefixes[s.prefix].uses == s.uses for s in prefills)  # type: ignore[union-attr]
    assert plan.prefixes[0].uses == 7


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"prefixes": (Prefix(3, ()),)}, "prefix 0 continues prefix 3"),
        ({"prefixes": (Prefix(-1, (Ref(0),)),)}, "step 0 needs a step that comes later"),
        ({"prefixes": (Prefix(-1, (Ref(9),)),)}, "refers to step 9"),
        ({"steps": (Compute(op="eval", operands=(Const("1"),)),)}, "'eval', which does not exist"),
        ({"steps": (Decode(prefix=7),)}, "continues prefix 7"),
        ({"text": 5}, "final text"),
    ],
)
def test_broken_plans_are_refused(change: dict[str, Any], wanted: str) -> None:
    @sgl.function
    def ask(s):
        s += "a" + sgl.gen("x")

    plan = msgspec.structs.replace(
        Plan(
            name="p", params=(), prefixes=(Prefix(-1, (Const("a"),)),), conversation=(), steps=(Decode(prefix=0),),
            variables=(), text=0, messages=-1, result=Const(None),
        ),
        **change,
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match=wanted):
        verify(plan)
    with pytest.raises(InvalidRequest):
        from_json(to_json(plan))


def test_json_that_is_no_plan() -> None:
    with pytest.raises(PlanError, match="not a plan"):
        from_json('{"name": "p"}')


class Watching(sgl.Scripted):
    """Holds back answers to prompts with `slow` until the prompts in `awaited` have been asked."""

    def __init__(self, slow: str, awaited: str) -> None:
        super().__init__()
        self.slow, self.awaited = slow, awaited
        self.seen = threading.Event()

    async def generate(self, requests: Sequence[Generate]) -> AsyncIterator[Delta]:
        if any(self.awaited in render(r.prompt) for r in requests):
            self.seen.set()
        slow = [r for r in requests if self.slow in render(r.prompt)]
        async for delta in super().generate([r for r in requests if r not in slow]):
            yield delta
        if slow:
            assert await asyncio.to_thread(self.seen.wait, 20), f"{self.awaited!r} waited for {self.slow!r}"
            async for delta in super().generate(slow):
                yield delta


def test_a_slow_branch_holds_up_only_its_join() -> None:
    asked = Watching("branch 0", "second of branch 1")

    @sgl.function
    def two(s):
        forks = s.fork(2)
        for i, f in enumerate(forks):
            f += f"branch {i}" + sgl.gen("a")
            f += f"second of branch {i}" + sgl.gen("b")
        forks.join()
        s += s["b"][0] + s["b"][1]

    state = two.compile().run(backend=asked)
    assert state.error() is None and len(state["b"]) == 2


def test_branches_and_rows_share_requests() -> None:
    asked = sgl.Scripted()
    tips.compile().run_batch([{"topic": t} for t in "abc"], backend=asked)
    assert asked.batches[0] == 6


def test_rows_in_flight_are_limited() -> None:
    asked = sgl.Scripted()
    states = tips.compile().run_batch([{"topic": str(k)} for k in range(5)], backend=asked, num_threads=1)
    assert max(asked.batches) <= 3 and [s["end"] != "" for s in states] == [True] * 5


def test_analysis_of_a_graph() -> None:
    graph = tips.trace().graph
    begin = graph.nodes_of(Begin)[0]
    assert [n.op for n in chain(graph, begin.out)][-1] == "return"
    assert len(critical_path(graph)) == 2
    assert all(isinstance(n, Gen) for n in critical_path(graph))
    forked, count = shared_prefixes(graph)[0]
    assert count == 4 and any(n.op == "fork" for n in users(graph)[forked])
    edges = dependencies(graph)
    assert edges.number_of_nodes() == len(graph.nodes)
    for value, node in definitions(graph).items():
        assert value in node.defs


def test_what_a_caller_may_do_with_a_finished_state() -> None:
    state = tips.compile().run("tea", backend=sgl.Scripted())
    state.sync()
    assert "end" in state and "nothing" not in state
    with pytest.raises(KeyError):
        _ = state["nothing"]
    state["mine"] = 3
    assert state["mine"] == 3
    assert state.get_meta_info("end")["completion_tokens"] > 0  # type: ignore[index]
    assert state.get_meta_info("nothing") is None
    with pytest.raises(sgl.errors.RunError, match="has ended"):
        state += "more"


async def test_asyncio() -> None:
    state = await tips.compile().arun("tea", backend=sgl.Scripted(), stream=True)
    found = [chunk async for chunk in state.text_async_iter()]
    assert "".join(found) == state.text()
    pairs = [pair async for pair in state.text_async_iter("end", return_meta_data=True)]
    assert "".join(text for text, _ in pairs) == state["end"] and pairs[-1][1]
    rows = await tips.compile().arun_batch([{"topic": "a"}], backend=sgl.Scripted())
    assert rows[0].text()
