"""Nodes with regions: text, JSON, verification, meaning, and the analyses that look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sglc.errors import IRError
from sglc.ir.analysis import critical_path, users
from sglc.ir.core import Value
from sglc.ir.evaluate import ModelCall, evaluate
from sglc.ir.json import from_json, to_json
from sglc.ir.ops import If, Loop
from sglc.ir.parser import parse_module
from sglc.ir.printer import print_module
from sglc.ir.verify import verify_module
from sglc.lang.chat_template import get_chat_template

TEXT = """graph @main(%q: str) {
  %0 = begin
  %1 = text %0, "hello ", %q
  %2, %t = select %1, "a", "b" {name="t"}
  %c = eq %t, "a"
  %3: state, %y = if %c {
    %4 = text %2, " A "
    %5, %g = gen %4 {name="g"}
    yield %5, %g
  } else {
    %6 = text %2, " B "
    yield %6, none
  }
  %7: state, %8 = loop %3, 0 {maximum=4} (%9: state, %10: any) {
    %11, %12 = gen %9 {name="x"}
    %14 = eq %12, "stop"
    %13 = not %14
    yield %13, %11, %12
  }
  %h = host %8 {function="m:f"}
  return %7, %h
}
"""


def answers(choice: str, *texts: str) -> Callable[[ModelCall], Any]:
    left = list(texts)
    return lambda call: choice if call.choices else left.pop(0)


def run(text: str, *said: str) -> Any:
    module = parse_module(text)
    template = get_chat_template("chatml")
    return evaluate(module, answers(*said), {"q": "Q"}, template, hosts={"m:f": lambda x: x * 2})


def test_text_and_json_round_trip() -> None:
    module = parse_module(TEXT)
    assert print_module(module) == TEXT
    assert print_module(from_json(to_json(module))) == TEXT
    verify_module(module)


def test_meaning() -> None:
    outcome = run(TEXT, "a", "one", "two", "stop")
    assert outcome.text == "hello Qa A onetwostop"
    assert (outcome.variables, outcome.result) == ({"t": "a", "g": "one", "x": "stop"}, "stopstop")
    assert run(TEXT, "b", "stop").text == "hello Qb B stop"
    with pytest.raises(IRError, match="more than 4 rounds"):
        run(TEXT, "b", *"1234")
    assert run(TEXT.replace("{maximum=4}", "{maximum=4, bounded=true}"), "b", *"1234").result == "44"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("yield %6, none", "yield %2, none", "yields the state %2 after it was appended to"),
        ("yield %6, none", "yield %6", "gives 1 values where 2 are wanted"),
        ("yield %6, none", "yield none, none", "for %3, a state"),
        ("if %c", "if %t", "is str, not bool"),
        ("%7: state, %8 = loop %3", "%20 = text %2\n  %7: state, %8 = loop %3", "%2 is used again"),
        ("yield %13, %11, %12", "yield %12, %11, %12", "must be a bool"),
        ("return %7, %h", "return %5, %h", "nothing defines it before"),
        ("maximum=4", "maximum=0", "must be at least 1"),
        ("%6 = text %2", "%4 = text %2", "%4 is defined twice"),
    ],
)
def test_malformed_regions_are_refused(old: str, new: str, problem: str) -> None:
    assert old in TEXT
    with pytest.raises(IRError) as error:
        verify_module(parse_module(TEXT.replace(old, new)))
    assert problem in str(error.value)


def test_a_loop_may_not_go_on_with_a_state_from_outside() -> None:
    text = TEXT.replace("  %7: state", "  %k = fork %3\n  %7: state").replace("gen %9", "gen %k")
    with pytest.raises(IRError, match="goes on with %k, a state from outside of the loop"):
        verify_module(parse_module(text))


def test_analyses_look_inside() -> None:
    graph = parse_module(TEXT).graph
    state = Value("2", "state")
    (branch,), (loop,) = graph.nodes_of(If), graph.nodes_of(Loop)
    assert users(graph)[state] == [branch]
    assert branch.captures == (state,)
    assert [n.op for n in critical_path(graph)] == ["select", "gen", "gen"]
    renamed = graph.remap({state: Value("other", "state")})
    assert "%other" in str(renamed) and "text %2" not in str(renamed)
    assert graph.remap({Value("absent", "str"): "x"}).nodes[-2] is graph.nodes[-2]
    assert loop.captures == ()
