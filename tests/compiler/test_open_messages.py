"""Which message is open, on every path: through arms, loops, forks and joins."""

from __future__ import annotations

from typing import Any

import pytest

import sglc as sgl
from runtime.backends.targets import target
from sglc.check.run import check_program
from sglc.check.subject import CheckOptions
from sglc.errors import PassError
from sglc.ir.analysis import open_messages
from sglc.ir.core import Module, Value
from sglc.ir.parser import parse_module
from sglc.ir.printer import print_module
from sglc.lang.trace import trace
from sglc.passes.pipeline import Pipeline

LOOP = """graph @main(%q: str) {
  %0 = begin
  %1 = role_begin %0 {role="user"}
  %2: state, %3 = loop %1, 0 {maximum=4} (%4: state, %5: any) {
    %6 = role_end %4 {role="user"}
    %7 = role_begin %6 {role="assistant"}
    %8, %9 = gen %7 {name="x"}
    %10 = eq %9, "stop"
    yield %10, %8, %9
  }
  return %2
}
"""


@sgl.function
def branches_inside(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant_begin()
    s += sgl.gen("mood")
    if s["mood"] == "calm":
        s += " Quietly: "
    else:
        s += " Loudly: "
    s += sgl.gen("rest")
    s += sgl.assistant_end()


@sgl.function
def opens_in_an_arm(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant(sgl.gen("mood"))
    s += sgl.user("And?")
    if s["mood"] == "calm":
        s += sgl.assistant_begin()
    s += sgl.gen("rest")


@sgl.function
def forks_inside(s: Any, q: str) -> None:
    s += sgl.user(q)
    s += sgl.assistant_begin()
    forks = s.fork(2)
    for fork in forks:
        fork += sgl.gen("a")
    forks.join()
    s += sgl.gen("b")
    s += sgl.assistant_end()


def module_of(program: Any) -> Module:
    return trace(program, {}, frozenset({"q"}))


def legalized(program: Any) -> Module:
    return Pipeline.parse('legalize{backend="anthropic"}').run(module_of(program), verify=True)


def codes(program: Any) -> list[str]:
    return [d.code for d in check_program(program, CheckOptions(backend=target("anthropic")))]


@pytest.mark.parametrize("program", [branches_inside, forks_inside], ids=["if", "fork"])
def test_a_message_stays_open_through_arms_and_branches(program: Any) -> None:
    assert print_module(legalized(program)) == print_module(module_of(program))
    assert codes(program) == []


def test_a_message_that_is_open_in_one_arm_only_is_not_open() -> None:
    with pytest.raises(PassError, match="no assistant message is open here"):
        legalized(opens_in_an_arm)
    assert "SGL403" in codes(opens_in_an_arm)


def test_a_loop_is_entered_from_before_it_and_from_its_end() -> None:
    graph = parse_module(LOOP).graph
    found = {v.name: [b.role if b else None for b in begins] for v, begins in open_messages(graph).items()}
    assert found["4"] == ["user", "assistant"]
    assert found["7"] == found["8"] == found["2"] == ["assistant"]
    assert found["6"] == found["0"] == [None]


def test_only_states_are_in_it() -> None:
    opened = open_messages(module_of(branches_inside).graph)
    assert opened and all(isinstance(v, Value) and v.type == "state" for v in opened)
