"""Which message is open, on every path: through arms, loops, forks and joins."""

from __future__ import annotations

import itertools
import linecache
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sglc as sgl
from runtime.api import Generate, render
from runtime.backends.targets import target
from sglc.check.run import check_program
from sglc.check.subject import CheckOptions
from sglc.errors import PassError
from sglc.ir.analysis import open_messages
from sglc.ir.core import Module, Value
from sglc.ir.ops import Gen
from sglc.ir.parser import parse_module
from sglc.ir.printer import print_module
from sglc.lang.trace import trace
from sglc.passes.pipeline import DEFAULT, Pipeline

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


# -- random programs: what is said of each gen is what its prompt shows ------------------------------------------------

_NUMBERS = itertools.count()
_MARKS = re.compile(r"<\|im_start\|>(\w+)|<\|im_end\|>")
MOVES = {
    None: ["user", "assistant", "text", "gen", "if", "fork", "call"],
    "user": ["end", "text", "gen", "if"],
    "assistant": ["end", "text", "gen", "if", "fork"],
}


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Statements that open and close messages wherever they may, gens apart from each other by their max_tokens."""
    gens, names = itertools.count(1), itertools.count()

    def statements(role: str | None, depth: int) -> tuple[list[str], str | None]:
        found: list[str] = []
        for _ in range(draw(st.integers(1, 4))):
            move = draw(st.sampled_from([m for m in MOVES[role] if depth < 2 or m not in ("if", "fork")]))
            name = f"v{next(names)}"
            if move in ("user", "assistant"):
                found.append(f"s += sgl.{move}_begin()")
                role = move
            elif move == "end":
                found.append(f"s += sgl.{role}_end()")
                role = None
            elif move == "text":
                found.append(f"s += 'text {name} '")
            elif move == "gen":
                found.append(f"s += sgl.gen('{name}', max_tokens={next(gens)})")
            elif move == "call":
                found.append("s += inner('why')['inside']")
            elif move == "fork":
                found += ["s += 'both '", f"{name} = s.fork(2)", f"for f in {name}:"]
                found += [f"    f += 'mark' + sgl.gen('{name}', max_tokens={next(gens)})"]
                found += [f"{name}.join({draw(st.sampled_from(['', repr('concate_and_append')]))})"]
            else:
                found += [f"s += sgl.select('{name}', ['yes', 'no'])", f"if s['{name}'] == 'yes':"]
                then, end = statements(role, depth + 1)
                other, otherwise = statements(role, depth + 1)
                while end != otherwise:  # arms that disagree could not go on alike
                    if otherwise is not None:
                        other, otherwise = [*other, f"s += sgl.{otherwise}_end()"], None
                    elif end is not None:
                        then, end = [*then, f"s += sgl.{end}_end()"], None
                found += [f"    {line}" for line in then] + ["else:"] + [f"    {line}" for line in other]
                role = end
        return found, role

    lines, role = statements(None, 0)
    end = [f"s += sgl.{role}_end()"] if role is not None else []
    return "\n".join(f"    {line}" for line in ["s += q", *lines, *end])


HEAD = """@sgl.function
def inner(s, q):
    s += q + sgl.gen("inside", max_tokens=99)


@sgl.function
def main(s, q):
"""


@settings(max_examples=80, deadline=None)
@given(bodies())
def test_what_is_open_is_what_an_interpreted_run_sees(body: str) -> None:
    file = f"<open messages {next(_NUMBERS)}>"
    source = HEAD + body + "\n"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    world: dict[str, Any] = {"sgl": sgl, "__name__": "open_messages"}
    exec(compile(source, file, "exec"), world)
    traced = module_of(world["main"])
    for module in (traced, Pipeline.parse(DEFAULT).run(traced)):
        said: dict[int, set[str | None]] = {}
        for graph in module.graphs.values():
            opened = open_messages(graph)
            for node in graph.walk():
                if isinstance(node, Gen):
                    limit = node.sampling.max_tokens or 0
                    said.setdefault(limit, set()).update(b.role if b else None for b in opened[node.state])
        for number in range(6):
            backend = sgl.Scripted(chat_template="chatml")
            state = world["main"].run(q=f"question {number} ", backend=backend)
            state.sync()
            assert state.error() is None
            for call in backend.calls:
                if isinstance(call, Generate):
                    marks = [m[1] for m in _MARKS.finditer(render(call.prompt))]
                    assert (marks[-1] if marks else None) in said[call.sampling.max_new_tokens or 0]
        assert all(len(roles) == 1 for roles in said.values())  # arms end alike here, so nothing is doubtful
