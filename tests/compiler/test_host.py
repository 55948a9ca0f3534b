"""Functions of the user's own in a compiled program: when they run, how often, in which order, and what they get."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sglc as sgl
from sglc.errors import PlanError
from sglc.exec.schedule import Schedule
from sglc.ir.ops import Host
from sglc.lang.chat_template import get_chat_template
from sglc.lang.host import find_host
from sglc.plan.lower import lower
from sglc.plan.render import from_json, to_json

LOG: list[Any] = []  # what the functions below were called with


@sgl.host
def note(*what: Any) -> None:
    LOG.append(what)


@sgl.host
def look_up(query: str, times: int = 1) -> str:
    LOG.append(query)
    return f"<{query.strip()[:6]}>" * times


@sgl.host
def score(text: str) -> int:
    LOG.append(("score", text))
    return len(text)


@sgl.host
def broken(text: str) -> str:
    LOG.append(("broken", text))
    raise LookupError(f"nothing about {text}")


@sgl.host
def lies(text: str) -> str:
    return len(text)  # type: ignore[return-value]


@sgl.function
def search(s, q):
    s += "Search " + q + ": " + sgl.gen("query", max_tokens=3)
    found = look_up(s["query"], times=2)
    s += " found " + found.upper() + " so " + sgl.gen("answer")
    if score(s["answer"]) > 20:
        s += " long"
        note("long", s["answer"])
    else:
        note("short")
    note("end", q)
    return found


@sgl.function
def agent(s, q):
    s += q + sgl.select("act", ["look", "done"])
    while s["act"] == "look":
        s += " for " + sgl.gen("what", max_tokens=2)
        s += " got " + look_up(s["what"])
        s += sgl.select("act", ["look", "done"])
    note("done", s["act"])
    s += sgl.gen("end")


@sgl.function
def parallel(s, q):
    forks = s.fork(3)
    for k, f in enumerate(forks):
        f += f"{q} {k} " + sgl.gen("x", max_tokens=2)
    for f in forks:
        note(f["x"])
    forks.join()
    s += look_up(q)


@sgl.function
def fails(s, q):
    s += q + sgl.gen("x", max_tokens=2)
    note("before")
    s += broken(s["x"])
    note("after")


@sgl.function
def promises(s, q):
    s += lies(q)


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    LOG.clear()


def outcome(run: Any) -> tuple[Any, ...]:
    LOG.clear()
    state = run()
    return state.text(), state.sink.variables(), state.ret_value, list(LOG)


@pytest.mark.parametrize("program", [search, agent, parallel], ids=lambda p: p.__name__)
def test_calls_happen_once_and_in_order(program: Any) -> None:
    compiled = program.compile(verify=True)
    for k in range(10):
        one, two = sgl.Scripted(), sgl.Scripted()
        expected = outcome(lambda k=k, one=one: program.run(q=f"q{k}", backend=one))
        assert outcome(lambda k=k, two=two: compiled.run(q=f"q{k}", backend=two)) == expected
        assert len(two.calls) == len(one.calls)
    assert compiled.breaks == []
    assert compiled.modules()[0].graph.nodes_of(Host)


def test_an_error_of_the_function_is_the_programs() -> None:
    with pytest.raises(LookupError, match="nothing about"):
        fails.run(q="q", backend=sgl.Scripted())
    expected, LOG[:] = list(LOG), []
    compiled = fails.compile()
    with pytest.raises(LookupError, match="nothing about"):
        compiled.run(q="q", backend=sgl.Scripted())
    assert expected == LOG and len(LOG) == 2
    assert compiled.breaks == []
    rows = compiled.run_batch([{"q": "a"}], backend=sgl.Scripted(), return_exceptions=True)
    assert isinstance(rows[0], LookupError)


def test_a_read_that_fails_comes_before_a_later_call() -> None:
    for run in (search.run, search.compile().run):
        LOG.clear()
        with pytest.raises(Exception, match="fails on"):
            run(q="bad", backend=sgl.Scripted(fail_on="bad"))
        assert LOG == []


def test_a_function_keeps_its_promise() -> None:
    with pytest.raises(TypeError, match="which is not the str it promises"):
        promises.compile().run(q="abc", backend=sgl.Scripted())


def test_tracing_never_calls() -> None:
    module = search.trace()
    assert LOG == []
    plan = lower(module, get_chat_template("default"))
    assert plan.hosts() == [f"{__name__}:look_up", f"{__name__}:score", f"{__name__}:note"]
    assert from_json(to_json(plan)) == plan


def test_functions_are_found_by_name() -> None:
    assert find_host(f"{__name__}:look_up") is look_up
    assert find_host("no.such.module:f") is None and find_host(f"{__name__}:LOG") is None
    plan = lower(search.trace(), get_chat_template("default"))
    broken_plan = from_json(to_json(plan).replace(f"{__name__}:look_up", "os:system"))
    with pytest.raises(PlanError, match="no function marked"):
        Schedule.of(broken_plan)


def test_a_local_function_runs_interpreted() -> None:
    seen: list[str] = []

    @sgl.host
    def local(text: str) -> str:
        seen.append(text)
        return text

    @sgl.function
    def uses(s, q):
        s += local(q)

    compiled = uses.compile()
    assert compiled.run(q="x", backend=sgl.Scripted()).text() == "x"
    assert seen == ["x"]
    assert "local" in compiled.breaks[0].reason and compiled.breaks[0].at is not None


def test_a_blocking_function_holds_up_nobody_else() -> None:
    compiled = agent.compile()
    rows = [{"q": f"row {k}"} for k in range(20)]
    states = compiled.run_batch(rows, backend=sgl.Scripted())
    expected = [agent.run(**row, backend=sgl.Scripted()).text() for row in rows]
    assert [s.text() for s in states] == expected
    assert threading.active_count() < 60
